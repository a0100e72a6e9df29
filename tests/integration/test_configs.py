"""What every bundle's files must have: for MONAI, for its model zoo, for MONAI Label and for each other."""

import inspect
import json

import monai.bundle
import pytest
from monai.bundle import ConfigParser

import medsaga.data
from medsaga.bundle.template import write_bundle

from .bundles import BUNDLES, ROOT, config_files


def keys(config, prefix="") -> set[str]:
    """Paths of all keys, without what a data set may need more or fewer of: transforms, arguments of its datalist."""
    found = set()
    for key, value in config.items():
        found.add(prefix + key)
        if isinstance(value, dict) and prefix + key != "datalist":
            found |= keys(value, f"{prefix}{key}#")
    return found


def read_json(path) -> dict:
    return json.loads(path.read_text())


def read(bundle: str, name: str) -> dict:
    return read_json(ROOT / "bundles" / bundle / "configs" / f"{name}.json")


def test_the_papers_bundles_are_there_and_the_template_is_none():
    medsaga = {"amos", "chest_xray", "isles", "spleen"}
    samed, msa, challenge = {"synapse"}, {"brain_tumour", "fundus", "skin_lesion", "thyroid_ultrasound"}, {"cvpr24"}
    assert set(BUNDLES) >= {"hippocampus", "breast_ultrasound"} | medsaga | samed | msa | challenge


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_bundle_is_what_make_bundles_writes(bundle):
    # raises, naming the file, where one was edited by hand
    assert write_bundle(ROOT / "bundles" / bundle, ROOT / "bundles" / "base") == []


@pytest.mark.parametrize("bundle", BUNDLES)
def test_nothing_but_the_description_of_the_data_is_kept_by_hand(bundle):
    folder = ROOT / "bundles" / bundle
    written = set(read_json(folder / ".written.json"))
    not_in_git = ("cache", "models", "output")
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    by_hand = {name for name in found - written if name.split("/")[0] not in not_in_git}
    texts = {name for name in by_hand if name.startswith("docs/") and name.endswith(".md")}
    overlays = {"configs/preprocessed.json"} if bundle == "synapse" else set()
    assert by_hand - texts == {"dataset.json", ".written.json"} | overlays


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_datalist_takes_its_arguments(bundle):
    datalist = read(bundle, "train")["datalist"]
    function = getattr(medsaga.data, datalist.pop("_target_").removeprefix("medsaga.data."))
    assert datalist["dataset_dir"] == "@dataset_dir"
    inspect.signature(function).bind(**datalist)


def test_versions_are_those_that_are_installed_here():
    constraints = dict(
        line.split(";")[0].strip().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    meta = read("hippocampus", "metadata")
    named = {**meta["required_packages_version"], "monai": meta["monai_version"], "numpy": meta["numpy_version"]}
    assert named.pop("medsaga") == medsaga.__version__
    assert named == {package: constraints[package] for package in named}


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("name", ["train", "inference", "evaluate", "multi_gpu_train"])
def test_every_bundle_has_the_same_keys_in_the_same_places(bundle, name):
    assert keys(read(bundle, name)) == keys(read("hippocampus", name))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_bundle_is_complete(bundle):
    folder = ROOT / "bundles" / bundle
    for name in ("configs/logging.conf", "docs/README.md", "docs/data_license.txt", "LICENSE"):
        assert (folder / name).stat().st_size > 0, name
    assert not list(folder.rglob("*.py")), "a bundle holds configs only"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_training_and_inference_agree(bundle):
    train, inference = read(bundle, "train"), read(bundle, "inference")
    meta = read(bundle, "metadata")["network_data_format"]
    assert inference["image_size"] == train["image_size"] == meta["inputs"]["image"]["spatial_shape"][0]
    for key in ("class_names", "channel_names", "sequences", "plane"):
        assert inference[key] == train[key]
    assert len(train["class_names"]) == meta["outputs"]["pred"]["num_channels"]
    assert list(meta["outputs"]["pred"]["channel_def"].values()) == train["class_names"]
    assert inference["network_def"]["encoder"] == train["network_def"]["encoder"]
    # the same for the image; only training also has labels to map
    of_image = [t for t in train["preprocessing"]["transforms"] if t["keys" if "keys" in t else "_target_"] != "label"]
    for a, b in zip(inference["preprocessing"]["transforms"], of_image, strict=True):
        assert {**a, "keys": None} == {**b, "keys": None}


@pytest.mark.parametrize("bundle", BUNDLES)
def test_monai_label_finds_what_it_overrides(bundle):
    train = ConfigParser.load_config_file(config_files(bundle, "train")[0])
    # a literal list with dictionaries, into which MONAI Label puts a loader of its own
    assert isinstance(train["train"]["handlers"], list)
    assert all(h["_target_"] != "CheckpointLoader" for h in train["train"]["handlers"])
    assert train["train"]["trainer"]["train_handlers"] == "@train#handlers"
    assert isinstance(train["train"]["trainer"]["max_epochs"], int)
    for part in ("train", "validate"):
        assert isinstance(train[part]["dataset"], dict)
        assert "data" in train[part]["dataset"]
    assert {"run", "device", "bundle_root", "network", "network_def"} <= set(train)
    assert {"network_def", "preprocessing", "device", "postprocessing", "inferer"} <= set(read(bundle, "inference"))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_verify_metadata(bundle, sample_data, tmp_path):
    schema = sample_data / "monai_schema" / "meta_schema_20240725.json"
    if not schema.is_file():
        pytest.skip(f"MONAI's metadata schema is not at {schema}")
    copy = tmp_path / schema.name
    copy.write_bytes(schema.read_bytes())
    meta_file = ROOT / "bundles" / bundle / "configs" / "metadata.json"
    monai.bundle.verify_metadata(meta_file=str(meta_file), filepath=str(copy))
    meta = read(bundle, "metadata")
    assert meta["version"] in meta["changelog"]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_verify_net_in_out(bundle):
    options = {
        "net_id": "network_def",
        "meta_file": str(ROOT / "bundles" / bundle / "configs" / "metadata.json"),
        "config_file": config_files(bundle, "inference")[0],
        "device": "cpu",
        "bundle_root": str(ROOT / "bundles" / bundle),
    }
    monai.bundle.verify_net_in_out(**options)  # raises where network and metadata disagree, as here:
    if bundle == "hippocampus":
        with pytest.raises(ValueError, match="output channel number"):
            monai.bundle.verify_net_in_out(**options, **{"_meta_#network_data_format#outputs#pred#num_channels": 99})
