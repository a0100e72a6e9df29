"""Every kind of fault is found, by the check that is for it and by no other, and whole bundles have none."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile

import pytest
import torch

from medsaga.bundle.__main__ import main
from medsaga.records import with_record
from medsaga.verify import verify_bundle, verify_folder

from .conftest import ROOT, edit, weights

BUNDLES = sorted(p.parent.parent.name for p in (ROOT / "bundles").glob("*/configs/metadata.json"))


def failed(folder, **options):
    """What is wrong, by check."""
    return {f.check: " ".join(f.problems) for f in verify_folder(folder, **options) if f.failed}


def state(folder, check, **options):
    return next(f.state for f in verify_folder(folder, **options) if f.check == check)


@pytest.mark.parametrize("name", BUNDLES)
def test_the_projects_bundles_are_whole(name):
    assert failed(ROOT / "bundles" / name, run=False) == {}


def test_a_whole_bundle_passes_and_what_is_not_there_is_skipped(bundle):
    findings = verify_folder(bundle)
    assert [f for f in findings if f.failed] == []
    skipped = {f.check: f.problems[0] for f in findings if f.state == "skipped"}
    assert set(skipped) == {
        "large files", "network: TorchScript", "network: ONNX", "no paths of a machine", "no names of patients"
    }  # fmt: skip
    assert "models/model.ts" in skipped["network: TorchScript"] and "--published" in skipped["no names of patients"]


def test_a_bundle_of_others_passes(foreign):
    assert failed(foreign) == {}
    assert state(foreign, "network: input and output") == "ok"
    assert state(foreign, "metadata: of this bundle") == state(foreign, "configs: keys of MONAI Label") == "skipped"


# --- faults: (change, check, what is said) --------------------------------------------------------------------------


def config(name, change):
    return lambda folder: edit(folder / "configs" / f"{name}.json", change)


def metadata(change):
    return config("metadata", change)


def output(**values):
    return metadata(lambda m: m["network_data_format"]["outputs"]["pred"].update(values))


def without(path):
    return lambda folder: (folder / path).unlink()


def text(path, content):
    return lambda folder: (folder / path).write_text(content)


def stale(folder):
    """metadata.json of a bundle with the same numbers of classes, channels and pixels."""

    def change(m):
        m |= {"task": "Segmentation of the prostate", "data_source": "Task05", "name": "MedSAGa prostate"}
        m["network_data_format"]["inputs"]["image"]["modality"] = "CT"

    edit(folder / "configs" / "metadata.json", change)


def large(**entry):
    def write(folder):
        path = folder / "models" / "model.pt"
        whole = {"path": "models/model.pt", "url": "https://x.org/model.pt", "hash_type": "sha256"}
        whole["hash_val"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "large_files.yml").write_text(json.dumps({"large_files": [whole | entry]}))

    return write


def saved(change):
    def write(folder):
        content = weights()
        change(content)
        torch.save(content, folder / "models" / "model.pt")

    return write


def rename(key, new):
    def change(c):
        c[new] = c.pop(key)

    return change


FAULTS = [
    (without("LICENSE"), "files", "LICENSE is missing"),
    (without("docs/README.md"), "files", "README.md is missing"),
    (text("LICENSE", "Apache\n"), "licences", "does not hold a licence"),
    (without("docs/data_license.txt"), "licences", "data_license.txt is missing"),
    (text("docs/data_license.txt", "Licence: TODO\n"), "licences", "'TODO'"),
    (large(hash_val="0" * 64), "large files", "damaged"),
    (large(hash_val=""), "large files", "hash_val is missing"),
    (large(hash_val="0" * 32), "large files", "not a sha256"),
    (large(path="../x.pt"), "large files", "out of the bundle"),
    (large(path="models/other.pt", url="FILL-IN/models/other.pt"), "large files", "give the address"),
    (metadata(lambda m: m.pop("copyright")), "metadata: MONAI's schema", "'copyright' is a required property"),
    (metadata(lambda m: m.update(authors=3)), "metadata: MONAI's schema", "authors: 3 is not of type"),
    (
        metadata(lambda m: m.update(version="0.9.0")),
        "metadata: version and changelog",
        "no entry for its version '0.9.0'",
    ),
    (metadata(lambda m: m.update(version="one")), "metadata: version and changelog", "three numbers"),
    (metadata(lambda m: m["required_packages_version"].pop("medsaga")), "metadata: required packages", "lacks medsaga"),
    (metadata(lambda m: m["required_packages_version"].update({"a b": "1"})), "metadata: required packages", "'a b'"),
    (output(channel_def={"0": "a", "2": "b", "3": "c"}), "metadata: channels", "run from 0"),
    (output(channel_def={"0": "background", "1": "x"}), "metadata: channels", "num_channels is 3"),
    (stale, "metadata: of this bundle", "prostate"),
    (config("inference", rename("image_size", "size")), "configs: references", "refers to 'image_size'"),
    (config("train", lambda c: c.update(loss="@los")), "configs: references", "'los'"),
    (config("train", lambda c: c.update(x="%nowhere#y")), "configs: references", "nowhere"),
    (config("evaluate", lambda c: c.update(notes="$len(@clas_names)")), "configs: references", "'clas_names'"),
    (
        config("inference", lambda c: c["preprocessing"]["transforms"][0].update(_target_="medsaga.transforms.Raed")),
        "configs: classes",
        "'medsaga.transforms.Raed' does not exist",
    ),
    (config("inference", lambda c: c["inferer"].update(batchsize=1)), "configs: classes", "no argument batchsize"),
    (config("inference", rename("evaluator", "tester")), "configs: keys of MONAI", "evaluator is missing"),
    (
        config("inference", rename("postprocessing", "post")),
        "configs: keys of MONAI Label",
        "postprocessing is missing",
    ),
    (config("train", lambda c: c["train"].update(handlers={})), "configs: keys of MONAI Label", "must be a list"),
    (config("inference", lambda c: c.update(plane="sagittal")), "configs: training and inference", "plane is"),
    (
        config("inference", lambda c: c["preprocessing"]["transforms"][-1].update(upper=90)),
        "configs: training and inference",
        "preprocessing of train.json",
    ),
    (config("inference", lambda c: c.update(bundle_root="$medsaga.bundle.find_bundle('x')")), "configs: name", "'x'"),
    (output(num_channels=4), "network: input and output", "the network gives 3"),
    (output(spatial_shape=[64, 64]), "network: input and output", "[16, 16]"),
    (output(dtype="float16"), "network: input and output", "dtype is float16"),
    (saved(lambda s: s.pop("pixel_mean")), "network: weights load", "lacks 1 keys (pixel_mean)"),
    (saved(lambda s: s.update(extra=torch.zeros(1))), "network: weights load", "extra"),
    (saved(lambda s: s["mask_decoder.mask_tokens.weight"].fill_(torch.nan)), "network: weights load", "NaN"),
    (text("models/model.pt", "version https://git-lfs.github.com/spec/v1\n"), "network: weights load", "git lfs pull"),
]


@pytest.mark.parametrize(("change", "check", "said"), FAULTS)
def test_each_fault_is_found(bundle, change, check, said):
    change(bundle)
    # what only the network can tell, and all else without running it
    found = failed(bundle, run=check.startswith("network"))
    name = next((name for name in found if name.startswith(check)), None)
    assert name is not None, found
    assert said in found[name]


@pytest.mark.parametrize("key", ["class_names", "image_size"])
def test_metadata_of_other_classes_or_size_is_found_without_dataset_json(bundle, key):
    (bundle / "dataset.json").unlink()
    assert failed(bundle, run=False) == {}
    edit(
        bundle / "configs" / "inference.json", lambda c: c.update({key: 48 if key == "image_size" else ["a", "b", "c"]})
    )
    assert key in failed(bundle, run=False)["metadata: of this bundle"]


def test_an_error_of_one_check_stops_no_other(bundle):
    (bundle / "configs" / "metadata.json").write_text("{ no JSON")
    (bundle / "LICENSE").unlink()
    found = failed(bundle, run=False)
    assert "JSONDecodeError" in found["metadata: MONAI's schema"] and "LICENSE" in found["files"]
    assert state(bundle, "configs: training and inference", run=False) == "ok"


def test_a_bundle_of_others_with_faults_is_found_out(foreign):
    edit(foreign / "configs" / "inference.json", lambda c: c["network_def"].update(out_channels=3))
    assert "the network gives 3" in failed(foreign)["network: input and output"]
    edit(foreign / "configs" / "inference.json", lambda c: c["network_def"].update(_target_="UNett"))
    assert "UNett" in failed(foreign)["configs: classes"] and "UNett" in failed(foreign)["network: input and output"]


def test_weights_of_others_in_wrappers_are_read(foreign):
    from monai.networks.nets import UNet

    network = UNet(3, 1, 2, [4, 8], [2])
    (foreign / "models").mkdir()
    torch.save({"state_dict": {"module." + k: x for k, x in network.state_dict().items()}}, foreign / "models/model.pt")
    assert state(foreign, "network: weights load") == "ok"
    torch.save(UNet(3, 1, 2, [4, 6], [2]).state_dict(), foreign / "models/model.pt")
    assert "with another shape" in failed(foreign)["network: weights load"]


def test_code_of_a_bundle_is_not_run_when_it_must_not(foreign):
    (foreign / "scripts").mkdir()
    (foreign / "scripts" / "__init__.py").write_text("raise SystemExit('was run')\n")
    edit(foreign / "configs" / "inference.json", lambda c: c["inferer"].update(_target_="scripts.Mine"))
    edit(foreign / "configs" / "inference.json", lambda c: c.update(network_def="$exec('raise SystemExit(1)')"))
    assert failed(foreign, run=False) == {}


# --- what is handed on ----------------------------------------------------------------------------------------------


def test_paths_and_patients_are_found_in_what_is_handed_on(bundle):
    record = {"train": ["Doe^Jane", "p2"], "validation": ["p3"], "test": [], "learnt_before": []}
    torch.save(with_record(weights(), record), bundle / "models" / "model.pt")
    edit(bundle / "configs" / "train.json", lambda c: c.update(dataset_dir="/home/jane/data", split={"train": ["p2"]}))
    (bundle / "docs" / "README.md").write_text("Data are in /mnt/archive/liver, see `docs`.\n")
    assert failed(bundle, run=False) == {}, "a bundle of one's own keeps them"
    found = failed(bundle, published=True, run=False)
    assert "names 3 patients" in found["no names of patients"] and "split" in found["no names of patients"]
    assert "Jane" not in found["no names of patients"]
    assert "'/home/jane/data'" in found["no paths of a machine"]
    assert "'/mnt/archive/liver'" in found["no paths of a machine"]


def test_exported_forms_that_do_not_agree_are_found(bundle):
    from medsaga.export.model_files import write_torchscript
    from medsaga.networks import SamSegmenter

    network = SamSegmenter("vit_test", image_size=64, num_classes=3).eval()
    network.load_state_dict(weights())
    write_torchscript(network, bundle / "models" / "model.ts", 1, {})
    assert state(bundle, "network: TorchScript") == "ok"
    torch.save(weights(seed=1), bundle / "models" / "model.pt")
    assert "differs from the network" in failed(bundle)["network: TorchScript"]


# --- the command ----------------------------------------------------------------------------------------------------


def zipped(folder, path, top=None):
    with zipfile.ZipFile(path, "w") as file:
        for one in folder.rglob("*"):
            file.write(one, f"{top or folder.name}/{one.relative_to(folder)}")
    return path


def test_a_zip_file_is_checked_as_what_is_handed_on(bundle, tmp_path):
    found = {f.check: f.state for f in verify_bundle(zipped(bundle, tmp_path / "x.zip"))}
    assert found["no names of patients"] == found["network: weights load"] == "ok"
    (tmp_path / "cut.zip").write_bytes((tmp_path / "x.zip").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.zip is not a zip file, or is damaged"):
        verify_bundle(tmp_path / "cut.zip")
    with pytest.raises(ValueError, match=r"y\.zip holds no bundle"):
        verify_bundle(zipped(bundle / "docs", tmp_path / "y.zip"))
    with pytest.raises(FileNotFoundError, match=r"none\.zip"):
        verify_bundle(tmp_path / "none.zip")


def test_the_command_prints_a_table_and_its_exit_code_says_the_result(bundle, capsys):
    main(["verify", str(bundle), "--no-run"])
    printed = capsys.readouterr().out
    assert "all is well" in printed and "network: weights load" in printed and "--no-run" in printed
    (bundle / "LICENSE").unlink()
    shutil.rmtree(bundle / "docs")
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(bundle), "--no-run"])
    assert caught.value.code == 1
    printed = capsys.readouterr().out
    assert "LICENSE is missing" in printed and "2 of 20 checks failed" in printed
