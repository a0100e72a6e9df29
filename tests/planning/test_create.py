"""From a folder to a bundle whose configs can be used, by the command that users run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from medsaga.bundle.__main__ import main


def create(folder, data, *options):
    """Run the command and give the bundle's folder; the tiny encoder's memory is predicted in a second."""
    words = ["create", folder.name, "--data", str(data), "--output", str(folder), "--workers", "0"]
    main([*words, "--encoder", "vit_test", *options])
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def config_of(bundle, name="train"):
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / f"{name}.json"))
    config["bundle_root"] = str(bundle)
    return config


@pytest.fixture(scope="module")
def bundle(volumes, tmp_path_factory):
    """Of the volumes, made once for the tests that only look at it."""
    return create(tmp_path_factory.mktemp("bundles") / "boxes", volumes)


def test_the_choices_are_in_the_configs(bundle):
    dataset = json.loads((bundle / "dataset.json").read_text())
    train = json.loads((bundle / "configs" / "train.json").read_text())
    assert train["class_names"] == ["background", "first box", "second box"]
    same = (
        "image_size",
        "plane",
        "batch_size",
        "test_patients",
        "num_slices",
        "val_interval",
        "weights",
        "dataset_dir",
    )
    assert {key: train[key] for key in same} == {key: dataset[key] for key in same}
    assert train["train"]["trainer"]["max_epochs"] == dataset["epochs"]
    assert dataset["intensities"] == {"range": [-160.0, 240.0]}  # the labels are 100 and 150 HU
    assert dataset["flip"] is False  # the boxes lie side by side
    assert "medsaga.transforms.RandMirrord" not in [
        t["_target_"] for t in train["train"]["preprocessing"]["transforms"]
    ]


def test_the_model_card_has_each_choice_with_its_reason_and_no_patient(bundle):
    dataset = json.loads((bundle / "dataset.json").read_text())
    card = (bundle / "docs" / "README.md").read_text()
    assert "## Choices" in card and "mirrored" in card and "usual window for soft tissue" in card
    assert all(f"| `{field}` |" in card for field in ("plane", "encoder", "flip", "num_slices", "epochs"))
    assert all(json.dumps(dataset[field]) in card for field in ("plane", "image_size"))
    assert "| first box | 1 | 100% |" in card
    for path in bundle.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            assert "ct_0" not in path.read_text()


def test_the_configs_list_read_and_check_the_data(bundle, volumes):
    config = config_of(bundle)
    datalist = config.get_parsed_content("datalist")
    assert [case["patient"] for case in datalist] == [f"ct_{n}" for n in range(6)]
    config.get_parsed_content("checking")  # raises where a case cannot be used
    assert not (bundle / "output" / "errors.csv").exists()
    shutil.rmtree(bundle / "cache")


def test_the_picture_lies_where_git_and_exports_do_not_take_it(bundle):
    pictures = [p.relative_to(bundle) for p in bundle.rglob("*.png")]
    assert [str(path) for path in pictures] == ["output/sheet.png"]
    width, height = Image.open(bundle / "output" / "sheet.png").size
    assert width > 400 and height > 400


def test_pictures_get_a_bundle_without_a_plane(pictures, tmp_path):
    bundle = create(tmp_path / "squares", pictures, "--class-names", "square")
    train = json.loads((bundle / "configs" / "train.json").read_text())
    assert train["plane"] is None
    assert train["image_size"] == 64
    assert train["class_names"] == ["background", "square"]
    assert len(config_of(bundle).get_parsed_content("datalist")) == 6
    assert config_of(bundle, "inference")["output_ext"] == ".png"


def test_a_second_run_changes_nothing_and_says_so(volumes, tmp_path, capsys):
    bundle = create(tmp_path / "twice", volumes)
    before = contents(bundle)
    times = {path: path.stat().st_mtime_ns for path in bundle.rglob("*") if path.suffix in (".json", ".md")}
    capsys.readouterr()
    create(bundle, volumes)
    assert "nothing was changed" in capsys.readouterr().out
    assert contents(bundle) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_dry_run_prints_everything_and_writes_nothing(volumes, tmp_path, capsys):
    folder = tmp_path / "dry"
    create(folder, volumes, "--dry-run")
    assert not folder.exists()
    out = capsys.readouterr().out
    for words in ("first box", "0.8 mm in a slice", "image_size", "Nothing was written (--dry-run)"):
        assert words in out


def test_other_options_change_a_bundle_that_was_not_edited(volumes, tmp_path):
    bundle = create(tmp_path / "options", volumes)
    create(bundle, volumes, "--flip", "--image-size", "112", "--intensities=-100,300", "--epochs", "7")
    dataset = json.loads((bundle / "dataset.json").read_text())
    assert [dataset[key] for key in ("flip", "image_size", "epochs")] == [True, 112, 7]
    assert dataset["intensities"] == {"range": [-100.0, 300.0]}
    train = json.loads((bundle / "configs" / "train.json").read_text())
    assert (train["image_size"], train["train"]["trainer"]["max_epochs"]) == (112, 7)
    assert "`--image-size`" in (bundle / "docs" / "choices.md").read_text()


@pytest.mark.parametrize("edited", ["dataset.json", "configs/train.json"])
def test_an_edited_file_is_not_written_over_without_force(volumes, tmp_path, edited):
    bundle = create(tmp_path / "edited", volumes)
    path = bundle / edited
    path.write_text(path.read_text().replace("boxes", "my boxes").replace("first box", "my box"))
    before = contents(bundle)
    with pytest.raises(SystemExit) as caught:
        create(bundle, volumes, "--epochs", "3")
    assert edited in str(caught.value) and "--force" in str(caught.value)
    assert contents(bundle) == before
    create(bundle, volumes, "--epochs", "3", "--force")
    assert "my box" not in path.read_text()


@pytest.mark.parametrize("name", ["$import os", "a::b"])
def test_names_that_a_config_would_evaluate_are_refused_and_nothing_is_written(volumes, tmp_path, name):
    data = shutil.copytree(volumes, tmp_path / "data")
    index = json.loads((data / "dataset.json").read_text())
    index["labels"]["1"] = name
    (data / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(SystemExit) as caught:
        create(tmp_path / "evil", data)
    assert name in str(caught.value)
    assert not (tmp_path / "evil").exists()
    # with other names it can be used
    bundle = create(tmp_path / "evil", data, "--class-names", "one", "two")
    assert json.loads((bundle / "dataset.json").read_text())["class_names"] == ["background", "one", "two"]


def test_texts_of_an_index_are_not_evaluated(volumes, tmp_path):
    data = shutil.copytree(volumes, tmp_path / "data")
    index = json.loads((data / "dataset.json").read_text())
    index |= {"name": "$print('evil')", "description": "{{ 7 * 7 }} <b>", "licence": "@secret\n| x"}
    (data / "dataset.json").write_text(json.dumps(index))
    bundle = create(tmp_path / "evil", data)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert "$" not in json.dumps(metadata["name"])
    assert "49" not in metadata["description"]


@pytest.mark.parametrize("name", ["a b", "$x", "../x", "9lives", "bad-name"])
def test_names_of_bundles_that_cannot_be(volumes, tmp_path, name):
    with pytest.raises(SystemExit, match="name is"):
        main(["create", name, "--data", str(volumes), "--output", str(tmp_path / name), "--workers", "0"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--intensities", "240,-160"], "--intensities"),
        (["--intensities", "5%,200"], "--intensities"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--test-patients=-1"], "--test-patients"),
        (["--label-values", "1,1"], "--label-values"),
        (["--memory", "much"], "no size"),
    ],
)
def test_options_that_cannot_be_name_themselves(volumes, tmp_path, options, text):
    with pytest.raises(SystemExit) as caught:
        create(tmp_path / "wrong", volumes, *options)
    assert text in str(caught.value) or "is not a size" in str(caught.value)
    assert not (tmp_path / "wrong").exists()


def test_wrong_files_are_listed_and_the_bundle_is_written(volumes, tmp_path, capsys):
    data = shutil.copytree(volumes, tmp_path / "data")
    (data / "imagesTr" / "ct_2.nii.gz").write_bytes(b"nothing")
    bundle = create(tmp_path / "some", data)
    out = capsys.readouterr().out
    assert "1 files cannot be used" in out and "imagesTr/ct_2.nii.gz" in out
    assert (bundle / "configs" / "train.json").is_file()


def test_check_looks_only(volumes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(volumes)
    main(["check", str(volumes), "--output", str(tmp_path / "looked"), "--workers", "0"])
    out = capsys.readouterr().out
    assert "first box" in out and "Choices" not in out
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["sheet.png"]
    assert contents(volumes) == before


def test_check_ends_with_one_where_files_are_wrong(pictures, tmp_path, capsys):
    data = shutil.copytree(pictures, tmp_path / "data")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(data / "masks" / "p3.png")
    with pytest.raises(SystemExit) as caught:
        main(["check", str(data), "--output", str(tmp_path / "looked"), "--workers", "0"])
    assert caught.value.code == 1
    assert "masks/p3.png" in capsys.readouterr().out
