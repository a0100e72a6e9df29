"""A trained bundle as a zip file: what is in it, what must not be, and that its models agree."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import pytest
import torch
import yaml

from medsaga.bundle.__main__ import main
from medsaga.export import zoo
from medsaga.export.clean import clean_config, clean_text, is_machine_path
from medsaga.export.model_files import run_onnx, write_onnx, write_torchscript
from medsaga.networks import SamSegmenter
from medsaga.records import read_record, with_record
from medsaga.verify import verify_folder

from .. import forks
from ..verify.conftest import edit, small, weights

pytest.importorskip("onnxscript", reason="ONNX cannot be written: pip install 'medsaga[export]'")
# not by pytest.importorskip, which would import it with its telemetry
pytestmark = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'medsaga[export]'"
)

TOLERANCE = 1e-4  # of the largest logit
RECORD = {
    "train": ["Doe^Jane", "p2"],
    "validation": ["Roe^Richard"],
    "test": ["p4", "p5"],
    "learnt_before": [],
    "unseen_classes": ["posterior"],
    "empty_labels": ["Doe^Jane_1"],
    "labelled": True,
    "seed": 7,
    "warnings": [],
}
SCORES = {
    name: {
        **{m: {"mean": mean, "std": 0.1, "n": 2} for m in ("dice", "hd95", "slice_dice", "slice_hd95")},
        "missed_or_invented": 0,
    }
    for name, mean in (("anterior", 0.81234), ("posterior", None), ("mean", 0.8))
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bundle as `create` writes it for a folder of this machine, trained and evaluated."""
    folder = small(tmp_path_factory.mktemp("mine") / "hippocampus")
    (folder / "models").mkdir()
    torch.save(with_record(weights(), RECORD), folder / "models" / "model.pt")
    (folder / "output" / "evaluation").mkdir(parents=True)
    (folder / "output" / "evaluation" / "metrics.json").write_text(json.dumps(SCORES))
    (folder / "output" / "split.json").write_text(json.dumps(RECORD))

    def local(config):
        config["dataset_dir"] = "/home/jane/studies/brain"

    edit(folder / "configs" / "train.json", local)
    edit(
        folder / "configs" / "train.json",
        lambda c: c.update(weights="/home/jane/sam.pt", split="/home/jane/split.json"),
    )
    edit(folder / "configs" / "inference.json", lambda c: c.update(dataset_dir="/home/jane/studies/brain/imagesTs"))
    edit(folder / "configs" / "metadata.json", lambda m: m["required_packages_version"].update(timm="0.0.1"))
    readme = folder / "docs" / "README.md"
    readme.write_text(
        readme.read_text() + "\nData: /home/jane/studies/brain, see [reading](../../../docs/reading.md).\n"
    )
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """What comes out of the zip file."""
    folder = tmp_path_factory.mktemp("out")
    words = ["export", str(trained), "--output", str(folder / "x.zip"), "--version", "0.2.0", "--changes", "trained"]
    main(words)
    with zipfile.ZipFile(folder / "x.zip") as file:
        file.extractall(folder)
    return folder / "hippocampus"


def test_weights_that_have_learnt_from_all_planes_are_handed_on_as_such(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "hippocampus")
    torch.save(with_record(weights(), {**RECORD, "plane": "all"}), folder / "models" / "model.pt")
    zoo.export_bundle(folder, tmp_path / "x.zip", forms=())
    with zipfile.ZipFile(tmp_path / "x.zip") as file:
        planes = [json.loads(file.read(f"hippocampus/configs/{n}.json"))["plane"] for n in ("train", "inference")]
    assert planes == ["all", "all"]


def read(folder, name):
    return json.loads((folder / "configs" / f"{name}.json").read_text())


def test_it_holds_what_the_zoo_wants_and_nothing_else(exported):
    assert {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()} == {
        "LICENSE",
        *(f"configs/{n}.json" for n in ("train", "inference", "evaluate", "multi_gpu_train", "metadata")),
        "configs/logging.conf",
        "docs/README.md",
        "docs/data_license.txt",
        "models/model.pt",
        "models/model.ts",
        "models/model.onnx",
    }
    assert not [f for f in verify_folder(exported, published=True) if f.failed]


def test_nothing_of_the_machine_and_of_patients_leaves(exported):
    for path in exported.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in (b"jane", b"Jane", b"Richard", str(exported.parent).encode())), (
                path
            )
    assert read_record(exported / "models" / "model.pt") is None
    train, inference = read(exported, "train"), read(exported, "inference")
    assert train["dataset_dir"] == "data/hippocampus" and inference["dataset_dir"] == "data/hippocampus/imagesTs"
    assert train["split"] is None and "bundle_root" in train["weights"]


def test_its_weights_are_those_that_were_trained(exported):
    found, expected = torch.load(exported / "models" / "model.pt", weights_only=True), weights()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_metadata_says_versions_and_scores(exported):
    metadata = read(exported, "metadata")
    assert metadata["version"] == "0.2.0"
    assert list(metadata["changelog"].items()) == [("0.2.0", "trained"), ("0.1.0", "first version")]
    assert metadata["eval_metrics"] == {
        "dice_anterior": 0.8123, "hd95_anterior": 0.8123, "mean_dice": 0.8, "mean_hd95": 0.8
    }  # fmt: skip
    assert metadata["required_packages_version"]["timm"] == importlib.metadata.version("timm")
    assert metadata["pytorch_version"] == torch.__version__.split("+")[0]


def test_the_card_says_scores_patients_by_number_and_commands_that_are_right(exported):
    card = (exported / "docs" / "README.md").read_text()
    assert "| anterior | 0.812 ± 0.100 |" in card and "| posterior | – |" in card
    assert "learnt from 2, for the choice of the epoch 1, kept for the test 2 (seed 7)" in card
    assert "No training slice shows: posterior." in card and "* 0.2.0: trained" in card
    assert "bundles/hippocampus" not in card and "--config_file hippocampus/configs/inference.json" in card
    assert "../" not in card and "see reading." in card


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3])
def test_models_agree_with_the_network(exported, images):
    network = SamSegmenter("vit_test", 64, 3).eval()
    network.load_state_dict(weights())
    image = torch.rand(images, 1, 64, 64, generator=torch.Generator().manual_seed(images))
    expected = network(image)
    for found in (
        torch.jit.load(str(exported / "models" / "model.ts"))(image),
        run_onnx(exported / "models" / "model.onnx", image),
    ):
        assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE


def test_models_need_no_medsaga(exported):
    code = """
import sys, torch
sys.modules["medsaga"] = None
assert torch.jit.load(sys.argv[1])(torch.rand(2, 1, 64, 64)).shape == (2, 3, 16, 16)
import openvino
core = openvino.Core()
compiled = core.compile_model(core.read_model(sys.argv[2]), "CPU")
assert compiled([torch.rand(2, 1, 64, 64).numpy()])[0].shape == (2, 3, 16, 16)
"""
    files = [str(exported / "models" / name) for name in ("model.ts", "model.onnx")]
    done = forks.run([sys.executable, "-W", "ignore", "-c", code, *files], exported)
    assert done.returncode == 0, done.stderr[-2000:]


@torch.no_grad()
def test_lite_medsams_encoder_and_several_channels_agree_and_are_of_no_device(tmp_path):
    torch.manual_seed(0)
    network = SamSegmenter("vit_t", 56, 3, "lite_medsam", True, in_channels=2, fine_features=True).eval()
    network.fine_features.widen.apply(_not_zero)
    image = torch.rand(3, 2, 56, 56)
    write_torchscript(network, tmp_path / "m.ts", 2, {})
    write_onnx(network, tmp_path / "m.onnx", 2)
    script, expected = torch.jit.load(str(tmp_path / "m.ts")), network(image)
    for found in (script(image), run_onnx(tmp_path / "m.onnx", image)):
        assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE
    # a device written into the trace would keep it from GPUs
    assert 'value="cpu"' not in str(script.inlined_graph)


def _not_zero(module):
    """What training adds to SAM starts from zero, and would hide that it is missing."""
    for parameter in module.parameters(recurse=False):
        parameter.normal_()


# --- large files, versions, what is refused -------------------------------------------------------------------------

WEIGHTS_ONLY = ["--forms"]  # the others take long to write


def test_large_files_are_listed_as_the_zoo_wants(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "_LARGE", 10_000_000)
    words = ["export", str(trained), "--output", str(tmp_path / "x.zip"), *WEIGHTS_ONLY]
    main(words)
    assert "no address for models/model.pt: export again with --url-prefix" in capsys.readouterr().out
    main([*words, "--url-prefix", "https://example.org/v1/"])
    with zipfile.ZipFile(tmp_path / "x.zip") as file:
        entries = yaml.safe_load(file.read("hippocampus/large_files.yml"))["large_files"]
        content = file.read("hippocampus/models/model.pt")
    (tmp_path / "model.pt").write_bytes(content)
    checksum = subprocess.run(["sha256sum", tmp_path / "model.pt"], capture_output=True, text=True).stdout.split()[0]
    assert entries == [
        {
            "path": "models/model.pt",
            "url": "https://example.org/v1/models/model.pt",
            "hash_val": checksum,
            "hash_type": "sha256",
        }
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--version", "0.2.0"], "--version and --changes go together"),
        (["--version", "0.1.0", "--changes", "x"], "must be above 0.1.0"),
        (["--version", "two", "--changes", "x"], "three numbers"),
    ],
)
def test_wrong_versions_are_refused(trained, tmp_path, words, said):
    with pytest.raises(SystemExit, match=said):
        main(["export", str(trained), "--output", str(tmp_path / "x.zip"), *words, *WEIGHTS_ONLY])
    assert not (tmp_path / "x.zip").exists()


def test_what_is_not_ready_is_refused_and_leaves_nothing(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "hippocampus")
    edit(
        tmp_path / "hippocampus" / "configs" / "metadata.json", lambda m: m.update(task="Segmentation of the prostate")
    )
    (tmp_path / "hippocampus" / "docs" / "data_license.txt").write_text("TODO")
    words = ["export", str(tmp_path / "hippocampus"), "--output", str(tmp_path / "x.zip"), *WEIGHTS_ONLY]
    with pytest.raises(SystemExit, match=r"(?s)cannot be exported until these checks pass.*'TODO'.*prostate"):
        main(words)
    (tmp_path / "hippocampus" / "models" / "model.pt").unlink()
    with pytest.raises(SystemExit, match=r"model\.pt does not exist"):
        main(words)
    with pytest.raises(SystemExit, match=r"must end in \.zip"):
        main(["export", str(trained), "--output", str(tmp_path / "x.tar")])
    assert [path.name for path in tmp_path.iterdir()] == ["hippocampus"]


def test_scores_of_other_weights_are_left_out(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "hippocampus")
    model = tmp_path / "hippocampus" / "models" / "model.pt"
    os.utime(model, (model.stat().st_atime, model.stat().st_mtime + 1000))
    main(["export", str(tmp_path / "hippocampus"), "--output", str(tmp_path / "x.zip"), *WEIGHTS_ONLY])
    assert "is older than" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "x.zip") as file:
        assert json.loads(file.read("hippocampus/configs/metadata.json"))["eval_metrics"] == {}


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/x/data", True),
        ("C:\\data\\x", True),
        ("/workspace/data", False),
        ("data/x", False),
        ("https://example.org/home/x", False),
        ("$@bundle_root + '/models/model.pt'", False),
        ("$'/mnt/x/y' + @name", True),
        ("$os.path.join(os.environ.get('MEDSAGA_DATA', 'data'), 'x')", False),
    ],
)
def test_paths_of_a_machine_are_told_from_others(value, expected):
    assert is_machine_path(value) is expected


def test_paths_beside_the_data_are_replaced_too():
    config = {
        "dataset_dir": "/mnt/a/images",
        "datalist": {"labels_dir": "/mnt/a/labels", "table": "t.csv"},
        "n": [1, "x"],
    }
    assert clean_config(config, "/mnt/a/images", "liver") == {
        "dataset_dir": "data/liver",
        "datalist": {"labels_dir": "data/labels", "table": "t.csv"},
        "n": [1, "x"],
    }
    text = "Data in `/mnt/a/images/x`, https://example.org/data/y and bundles/liver/models."
    assert clean_text(text, "/mnt/a/images", "liver") == (
        "Data in `data/liver/x`, https://example.org/data/y and liver/models."
    )
