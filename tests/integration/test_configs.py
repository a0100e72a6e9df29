"""What every bundle's files must have: for MONAI, for its model zoo, for MONAI Label and for each other."""

import json

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from .bundles import BUNDLES, ROOT, config_files


def keys(config, prefix="") -> set[str]:
    """Paths of all keys, without the transforms and handlers that a data set may need more or fewer of."""
    found = set()
    for key, value in config.items():
        found.add(prefix + key)
        if isinstance(value, dict):
            found |= keys(value, f"{prefix}{key}#")
    return found


def read(bundle: str, name: str) -> dict:
    return json.loads((ROOT / "bundles" / bundle / "configs" / f"{name}.json").read_text())


def test_the_three_bundles_are_there():
    assert {"chest_xray", "hippocampus", "spleen"} <= set(BUNDLES)


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
    assert inference["class_names"] == train["class_names"]
    assert len(train["class_names"]) == meta["outputs"]["pred"]["num_channels"]
    assert list(meta["outputs"]["pred"]["channel_def"].values()) == train["class_names"]
    assert inference["network_def"]["encoder"] == train["network_def"]["encoder"]
    # the same for the image; only training also has labels to map
    of_image = [t for t in train["preprocessing"]["transforms"] if t["_target_"] != "MapLabelValued"]
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
    with pytest.raises(ValueError, match="output channel number"):
        monai.bundle.verify_net_in_out(**options, **{"_meta_#network_data_format#outputs#pred#num_channels": 9})
