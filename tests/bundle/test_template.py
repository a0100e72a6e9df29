"""Bundles written from dataset.json: what goes in, what is refused, what a second run does."""

import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from medsaga.bundle.dataset import read_dataset
from medsaga.bundle.template import bundle_files, write_bundle

BASE = Path(__file__).resolve().parents[2] / "bundles" / "base"

DATASET = {
    "name": "nuclei_1",
    "title": "Nuclei",
    "task": "Segmentation of nuclei",
    "description": "Nuclei under the microscope.",
    "source": "https://example.org/data#nuclei",
    "folder": "DSB2018/stage 1",
    "datalist": {"_target_": "medsaga.data.named_files_datalist", "image": "{case}", "label": "{case}_mask"},
    "class_names": ["background", "nucleus"],
    "modality": "GM",
    "data_type": "png",
    "plane": None,
}


def config(dataset: dict, name: str = "train") -> dict:
    return json.loads(bundle_files(dataset, BASE)[f"configs/{name}.json"])


def targets(dataset: dict, name: str = "train") -> list[str]:
    return [t["_target_"].split(".")[-1] for t in config(dataset, name)["preprocessing"]["transforms"]]


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "nuclei_1"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_the_defaults_are_of_all_fields_and_none_else():
    with pytest.raises(ValueError, match="the fields are") as caught:
        bundle_files({**DATASET, "colour_space": "RGB"}, BASE)
    assert "colour_space" in str(caught.value)
    assert str(caught.value).split("the fields are ")[1].rstrip(".").split(", ") == list(read_dataset(BASE))


def test_monai_reads_what_was_given():
    parser = ConfigParser(config(DATASET))
    parser["imports"] = ["$import os"]
    assert parser.get_parsed_content("class_names") == ["background", "nucleus"]
    assert parser.get_parsed_content("dataset_dir").endswith("DSB2018/stage 1")
    assert parser["datalist"] == {**DATASET["datalist"], "dataset_dir": "@dataset_dir"}
    assert parser["train"]["trainer"]["max_epochs"] == read_dataset(BASE)["epochs"]


@pytest.mark.parametrize(
    "values, labels, mapping",
    [
        (None, ["background", "a", "b"], None),
        ([7, 9], ["background", "a", "b"], {7: 1, 9: 2}),
        # fundus: background is white, the innermost class black
        ([255, 128, 0], ["background", "disc", "cup"], {255: 0, 128: 1, 0: 2}),
        # organs that are not segmented are background
        ([[5, 9], 8, [2, 3]], ["background", "aorta", "kidney"], {5: 0, 9: 0, 8: 1, 2: 2, 3: 2}),
    ],
)
def test_values_of_labels_are_mapped_in_training_only(values, labels, mapping):
    dataset = {**DATASET, "label_values": values, "class_names": labels}
    found = [t for t in config(dataset)["preprocessing"]["transforms"] if t["_target_"] == "MapLabelValued"]
    assert [dict(zip(t["orig_labels"], t["target_labels"])) for t in found] == ([mapping] if mapping else [])
    assert "MapLabelValued" not in targets(dataset, "inference")


def test_objects_with_numbers_of_their_own_become_one_class():
    dataset = {**DATASET, "label_values": "instances"}
    assert targets(dataset)[2] == "AsDiscreted"
    assert "AsDiscreted" not in targets(dataset, "inference")
    with pytest.raises(ValueError, match="one class of all numbers"):
        bundle_files({**dataset, "class_names": ["background", "a", "b"]}, BASE)


def test_intensities_and_flip():
    assert targets(DATASET)[-1] == "ScaleIntensityRangePercentilesd"
    ct = config({**DATASET, "intensities": {"range": [-125, 275]}}, "inference")["preprocessing"]["transforms"][-1]
    assert (ct["_target_"], ct["a_min"], ct["a_max"]) == ("ScaleIntensityRanged", -125, 275)
    floored = targets({**DATASET, "intensities": {"percentiles": [1, 99], "floor": -160}})
    assert floored[-2:] == ["ThresholdIntensityd", "ScaleIntensityRangePercentilesd"]
    flips = [
        [t["_target_"] for t in config({**DATASET, "flip": flip})["train"]["preprocessing"]["transforms"]].count(
            "medsaga.transforms.RandMirrord"
        )
        for flip in (True, False)
    ]
    assert flips == [1, 0]


def test_sequences_are_channels_scaled_each_by_itself():
    names, ends = ["T1", "T2", "FLAIR", "DWI"], ["_t1", "_t2", "_flair", "_dwi"]
    dataset = {**DATASET, "channel_names": names, "sequences": ends, "plane": "auto"}
    for name in ("train", "inference"):
        written = config(dataset, name)
        assert written["channel_names"] == names
        assert written["sequences"] == ends
        assert written["preprocessing"]["transforms"][-1]["channel_wise"] is True
    image = config(dataset, "metadata")["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], list(image["channel_def"].values())) == (4, names)
    with pytest.raises(ValueError, match="sequences"):
        bundle_files({**dataset, "sequences": ends[:3]}, BASE)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("class_names", ["background", "$__import__('os').system('id')"], "expression"),
        ("class_names", ["background", "@bundle_root"], "reference"),
        ("class_names", ["background", "a#b"], "path into the config"),
        ("class_names", ["background", "a", "a"], "different names"),
        ("channel_names", ["%train"], "macro"),
        ("sequences", ["$x"], "expression"),
        ("task", "$1 + 1", "expression"),
        ("references", ["$1 + 1"], "expression"),
        ("changelog", {"0.1.0": "$1 + 1"}, "expression"),
        ("changelog", {"$x": "y"}, "a key must not begin with _"),
        ("folder", "a', __import__('os').system('id'), '", "plain names"),
        ("folder", "../secret", "plain names"),
        ("folder", "/etc", "plain names"),
        ("test_images", "a/../../b", "plain names"),
        ("name", "no spaces", "letters, digits"),
        ("name", "9lives", "letters, digits"),
        ("name", "a'); import os; ('", "letters, digits"),
        ("weights", "$torch.load('x')", "expression"),
        ("output_ext", "@x", "reference"),
        ("datalist", {"_target_": "os.system", "command": "id"}, "medsaga.data"),
        ("datalist", {"_target_": "medsaga.data.x_datalist", "image": "$1"}, "expression"),
        ("datalist", {"_target_": "medsaga.data.x_datalist", "a": {"b": ["$1"]}}, "expression"),
        ("datalist", {"_target_": "medsaga.data.x_datalist", "_requires_": "x"}, "a key must not begin with _"),
        ("datalist", {"_target_": "medsaga.data.x_datalist", "dataset_dir": "x"}, "field of its own"),
        ("image_size", "256", "whole number"),
        ("image_size", True, "whole number"),
        ("lr", float("nan"), "finite"),
        ("epochs", 0, "1 or more"),
        ("title", None, "title is null; it must be a text"),
        ("label_values", [1, 2, 3], "label_values"),
        ("label_values", [0, 0], "twice"),
        ("intensities", {"range": [5, 5]}, "intensities"),
        ("intensities", {"percentiles": [0.5, 99.5], "unit": "HU"}, "intensities"),
        ("dataset_dir", "/data", "give either folder"),
        ("download", {"url": "https://example.org/a.zip"}, "the keys page and licence"),
        ("download", {"page": "a", "licence": "b", "files": ["c"]}, "a list of objects with these keys"),
        ("download", {"page": "a", "licence": "b", "checksum": "c"}, "download must"),
        ("split", {"train": ["a"]}, "split must"),
    ],
)
def test_what_would_be_evaluated_or_cannot_be_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        bundle_files({**DATASET, field: value}, BASE)
    assert "nuclei_1" in str(caught.value) or field == "name"


def test_texts_are_put_in_as_they_are():
    texts = {"data": "{{ 7 * 7 }} {% include 'x' %}", "performance": "**0.9**"}
    readme = bundle_files({**DATASET, "title": "{{ 7 * 7 }}"}, BASE, texts)["docs/README.md"]
    assert texts["data"] in readme
    assert texts["performance"] in readme
    assert readme.startswith("# {{ 7 * 7 }}\n")
    assert "49" not in readme


def test_a_data_folder_of_ones_own(tmp_path):
    dataset = {**DATASET, "folder": None, "dataset_dir": str(tmp_path), "test_images": "new"}
    assert config(dataset)["dataset_dir"] == str(tmp_path)
    assert config(dataset, "inference")["dataset_dir"] == f"{tmp_path}/new"


def test_a_second_run_changes_nothing(bundle):
    names = {p.relative_to(bundle).as_posix() for p in write_bundle(bundle, BASE)}
    assert {"LICENSE", "configs/train.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"} <= names
    before = contents(bundle)
    assert write_bundle(bundle, BASE) == []
    assert contents(bundle) == before


def test_a_change_of_the_data_set_or_the_template_is_written(bundle, tmp_path):
    write_bundle(bundle, BASE)
    (bundle / "dataset.json").write_text(json.dumps({**DATASET, "epochs": 7}))
    assert {p.name for p in write_bundle(bundle, BASE)} == {"train.json", "README.md"}
    assert json.loads((bundle / "configs" / "train.json").read_text())["train"]["trainer"]["max_epochs"] == 7
    template = tmp_path / "base"
    shutil.copytree(BASE, template)
    (template / "configs" / "evaluate.json").write_text("{}\n")
    assert [p.name for p in write_bundle(bundle, template)] == ["evaluate.json"]


def test_an_edited_file_is_named_and_nothing_is_written(bundle):
    write_bundle(bundle, BASE)
    train = bundle / "configs" / "train.json"
    edited = train.read_text().replace('"seed": 0', '"seed": 1')
    train.write_text(edited)
    (bundle / "dataset.json").write_text(json.dumps({**DATASET, "epochs": 7}))
    before = contents(bundle)
    with pytest.raises(FileExistsError, match="--force") as caught:
        write_bundle(bundle, BASE)
    assert str(train) in str(caught.value)
    assert "README.md" not in str(caught.value)
    assert contents(bundle) == before
    assert train in write_bundle(bundle, BASE, force=True)
    assert '"seed": 0' in train.read_text()


@pytest.mark.parametrize("record", [None, "not JSON", "[]"])
def test_without_its_record_every_other_file_counts_as_edited(bundle, record):
    write_bundle(bundle, BASE)
    path = bundle / ".written.json"
    path.unlink() if record is None else path.write_text(record)
    assert write_bundle(bundle, BASE) == []  # all is as it has to be, and remembered again
    assert json.loads(path.read_text())
    path.unlink()
    (bundle / "LICENSE").write_text("mine")
    with pytest.raises(FileExistsError, match="LICENSE"):
        write_bundle(bundle, BASE)


def test_a_bundle_is_called_as_its_folder(bundle):
    moved = bundle.rename(bundle.with_name("cells"))
    with pytest.raises(ValueError, match="'cells'"):
        write_bundle(moved, BASE)


@pytest.mark.parametrize("text, error", [("{", "not JSON"), ("[]", "an object"), (None, "missing")])
def test_a_dataset_json_that_cannot_be_read(tmp_path, text, error):
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        write_bundle(tmp_path, BASE)
