"""Pre-training by bundles/methods/pretrain.json on images without labels, and a training that starts from it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsaga.memory.training import Training
from medsaga.networks import SamSegmenter

from .bundles import BUNDLES, ENCODERS, ROOT, command, config_files, fails, paths, run, start
from .dicom.small import write_chest_phantoms
from .published_layouts import brain_tumour
from .test_multi_process import torchrun

PRETRAIN = "../../methods/pretrain"  # as seen from a bundle's configs
SHORT = {
    "weights": None,
    "num_workers": 0,
    "num_slices": 4,
    "batch_size": 2,
    "rank": 4,
    "warmup_steps": 1,
    "train#trainer#max_epochs": 1,
}


@pytest.fixture(scope="module")
def scans(phantoms, tmp_path_factory):
    """Volumes in two folders, and no label."""
    folder = tmp_path_factory.mktemp("scans")
    for number, path in enumerate(sorted((phantoms / "imagesTr").iterdir())[:4]):
        (folder / str(number % 2)).mkdir(exist_ok=True)
        shutil.copy(path, folder / str(number % 2))
    return folder


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    return write_chest_phantoms(tmp_path_factory.mktemp("data") / "chests", cases=6, first_seed=0)


def options(bundle, folder, work, **changes):
    return {**SHORT, **ENCODERS[bundle], **paths(bundle, folder, work), **changes}


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_bundle_pretrains_on_images_alone(bundle, scans, chests, tmp_path):
    pictures = json.loads(Path(config_files(bundle, "train")[0]).read_text())["plane"] is None
    folder = chests / "images" if pictures else scans
    if bundle == "brain_tumour":  # four files a case
        folder = tmp_path / "data"
        brain_tumour(folder)
    parts = {"emix_weight": 0.1, "shed_weight": 0.1} if bundle in ("chest_xray", "spleen") else {}
    settings = options(bundle, folder, tmp_path, **parts)
    run("training", bundle, "train", PRETRAIN, **settings)
    last = torch.load(tmp_path / "output" / "last.pt", weights_only=True)
    assert last["progress"] == {"epoch": 1, "iteration": 2}
    groups = last["optimizer"]["param_groups"]
    assert [group["name"] for group in groups] == ["encoder_galore", "encoder", "decoder"]
    assert len(last["optimizer"]["state"]) == sum(len(group["params"]) for group in groups)
    projection = 2 if bundle == "brain_tumour" else 0  # of four sequences to three channels
    assert len(groups[2]["params"]) == (5 if parts else 3) + projection
    encoder = ENCODERS[bundle]
    network = encoder["network_def#encoder"], encoder["image_size"], 2, tmp_path / "model.pt", True
    segmenter = SamSegmenter(*network, in_channels=4 if projection else 1)
    assert torch.equal(
        segmenter.state_dict()["image_encoder.neck.0.weight"], last["network"]["model"]["image_encoder.neck.0.weight"]
    )


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory):
    """Weights in SAM's format, in place of published ones."""
    path = tmp_path_factory.mktemp("weights") / "sam.pth"
    torch.manual_seed(3)
    state = SamSegmenter("vit_test", 64, num_classes=4).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith("pixel_")}, path)
    return path


TEST_ENCODER = {"network_def#encoder": "vit_test", "image_size": 64}
LONG = {"num_slices": 24, "batch_size": 4, "train#trainer#max_epochs": 12, "encoder_lr": 2e-3, "lr": 2e-3}


@pytest.fixture(scope="module")
def pretrained(scans, sam_file, tmp_path_factory):
    """The folder of a longer pre-training, in a process of its own."""
    work = tmp_path_factory.mktemp("pretrained")
    settings = options("hippocampus", scans, work, **TEST_ENCODER, **LONG, weights=str(sam_file))
    words, log = command("training", "hippocampus", "train", PRETRAIN, **settings), work / "log"
    assert start(words, log, OMP_NUM_THREADS="1").wait(600) == 0, log.read_text()[-3000:]
    return work


def test_the_loss_falls(pretrained):
    events = EventAccumulator(str(max((pretrained / "output" / "tensorboard").iterdir()))).Reload()
    losses = [event.value for event in events.Scalars("train_loss")]
    assert len(losses) == 12 * 6
    assert sum(losses[-12:]) < 0.6 * sum(losses[:12])


def test_the_file_has_another_encoder_and_the_same_decoder(pretrained, sam_file):
    before = torch.load(sam_file, weights_only=True)
    after = torch.load(pretrained / "model.pt", weights_only=True)["model"]
    assert after.keys() == before.keys()
    for name, value in after.items():
        if name.startswith("image_encoder.") and value.ndim > 1 and "pos" not in name:
            assert not torch.equal(value, before[name]), name
        elif not name.startswith("image_encoder."):
            assert torch.equal(value, before[name]), name


def test_a_bundle_trains_from_the_file(pretrained, phantoms, tmp_path):
    file = pretrained / "model.pt"
    settings = options("hippocampus", phantoms, tmp_path, **TEST_ENCODER, weights=str(file))
    settings.update({"test_patients": 1, "val_patients": 1, "train_patients": 4, "val_interval": 1})
    # rates of zero: what is saved is what training started from
    run("training", "hippocampus", "train", **settings, encoder_lr=0.0, lr=0.0)
    started = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in torch.load(file, weights_only=True)["model"].items():
        if name.startswith("image_encoder."):
            assert torch.equal(started[name], value), name
    assert len(started["mask_decoder.mask_tokens.weight"]) == 3
    run("training", "hippocampus", "train", **settings)


def test_it_resumes_to_the_same_weights(scans, tmp_path):
    both = {**TEST_ENCODER, "emix_weight": 0.1, "shed_weight": 0.1, "lr_scheduler#max_steps": 4}
    both["train#trainer#max_epochs"] = 2
    whole, parts = (options("hippocampus", scans, tmp_path / name, **both) for name in ("whole", "parts"))
    run("training", "hippocampus", "train", PRETRAIN, **whole)
    run("training", "hippocampus", "train", PRETRAIN, **{**parts, "train#trainer#max_epochs": 1})
    run("training", "hippocampus", "train", PRETRAIN, **parts, resume=True)
    a, b = (torch.load(tmp_path / name / "output" / "last.pt", weights_only=True) for name in ("whole", "parts"))
    assert a["progress"] == b["progress"] == {"epoch": 2, "iteration": 4}
    for part in ("model", "pretraining"):
        assert all(torch.equal(value, b["network"][part][key]) for key, value in a["network"][part].items())


def test_update_in_backward_changes_nothing(scans, tmp_path):
    results = []
    for inside in (True, False):
        work = tmp_path / str(inside)
        settings = options("hippocampus", scans, work, **TEST_ENCODER, emix_weight=0.1, shed_weight=0.1)
        run("training", "hippocampus", "train", PRETRAIN, **settings, update_in_backward=inside, checkpointing="least")
        results.append(torch.load(work / "model.pt", weights_only=True)["model"])
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_options_of_memory_work(scans, tmp_path):
    lean = {"precision": "bf16_weights", "state_bits": 8, "accumulation_steps": 2, "max_norm": 1.0, "offload": True}
    lean |= {"device": "$torch.device('cpu')", "checkpointing": "blocks"}
    run("training", "hippocampus", "train", PRETRAIN, **options("hippocampus", scans, tmp_path, **TEST_ENCODER, **lean))
    state = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    assert state["image_encoder.blocks.0.attn.qkv.weight"].dtype == torch.bfloat16
    SamSegmenter("vit_test", 64, 2, tmp_path / "model.pt", True)


def test_two_processes_pretrain_one_encoder(scans, tmp_path):
    settings = options("hippocampus", scans, tmp_path, **TEST_ENCODER, batch_size=1, shed_weight=0.1)
    settings["device"] = "$torch.device('cpu')"
    words, log = command("training", "hippocampus", "train", PRETRAIN, "multi_gpu_train", **settings), tmp_path / "log"
    assert torchrun(words, log).wait(600) == 0, log.read_text()[-3000:]
    last = torch.load(tmp_path / "output" / "last.pt", weights_only=True)
    assert last["progress"] == {"epoch": 1, "iteration": 2}
    SamSegmenter("vit_test", 64, 2, tmp_path / "model.pt", True)


def parser(bundle, **changes):
    config = ConfigParser(ConfigParser.load_config_files(config_files(bundle, "train", PRETRAIN)))
    for key, value in changes.items():
        config[key] = value
    return config


def test_a_step_is_measured_like_any_other():
    training = Training(parser("spleen", **TEST_ENCODER, batch_size=2, rank=4))
    before = {name: value.clone() for name, value in training.network.named_parameters()}
    training.run(2)
    changed = {name for name, value in training.network.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("segmenter.image_encoder.") for name in changed)
    assert not any(name.startswith("segmenter.mask_decoder.") for name in changed)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_it_writes_nothing_where_the_bundle_does(bundle):
    config, own = parser(bundle), ConfigParser(ConfigParser.load_config_files(config_files(bundle, "train")))
    for key in ("output_dir", "model_path"):
        assert config.get_parsed_content(key) != own.get_parsed_content(key)


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("sam_vit_b", "pretrained.pt"),
        ("medsam_vit_b", "pretrained_medsam.pt"),
        ("/medsam/own.pth", "pretrained.pt"),
        ("/data/MedSAM.pth", "pretrained_medsam.pt"),
        (None, "pretrained.pt"),
    ],
)
def test_the_files_name_tells_how_images_are_normalised(weights, name):
    """load_weights goes by the name, as it does for other files of SAM's format."""
    assert parser("spleen", weights=weights).get_parsed_content("model_path").rsplit("/", 1)[1] == name


def test_a_folder_without_images_is_refused(tmp_path):
    message = fails("training", "hippocampus", "train", PRETRAIN, **options("hippocampus", tmp_path, tmp_path / "work"))
    assert f"No image in {tmp_path}" in message


def test_it_is_described():
    page = (ROOT / "docs" / "pretraining.md").read_text()
    own = ConfigParser.load_config_file(str(ROOT / "bundles" / "methods" / "pretrain.json"))
    for key in ("mask_ratio", "emix_weight", "shed_weight", "model_path", "output_dir"):
        assert key in own
        assert f"`{key}`" in page
