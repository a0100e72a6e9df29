"""The overlays of bundles/methods that fine-tune other parts of the network, or train another one, on every bundle."""

import csv
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medsaga.data import write_decathlon_phantoms
from medsaga.memory.training import Training

from .bundles import ENCODERS, ROOT, SMALL, config_files, fails, paths, run
from .dicom.small import write_chest_phantoms

# bundles of one grey channel; those of sequences and colours are in test_published_layouts.py
GREY = ("amos", "chest_xray", "hippocampus", "isles", "spleen")
OF_SAM = ("full", "no_warmup", "medsaga_v1", "medsaga_v2", "decoder_only")
NETWORKS = {  # made small where they can be
    "unet": {"network_def#features": (8, 8, 8, 8, 8, 8)},
    "dynunet": {"network_def#filters": "$[8] * (@levels + 1)"},
    "dae_former": {"network_def#widths": (8, 16, 24)},
    "dynunet_3d": {"network_def#filters": "$[4] * (@levels + 1)", "patch_size": (16, 16, 16)},
}
OF_NETWORKS = [
    (name, bundle) for name, bundle in product(NETWORKS, GREY) if (name, bundle) != ("dynunet_3d", "chest_xray")
]
SHORT = {
    "weights": None,
    "num_workers": 0,
    "train#trainer#max_epochs": 1,
    "val_interval": 1,
    "batch_size": 2,
    "test_patients": 1,
    "val_patients": 1,
    "train_patients": 4,
    "num_slices": 4,
    "min_classes": 1,
    "rank": 4,
}


def overlay(method: str) -> str:
    return f"../../methods/{method}"  # as seen from a bundle's configs


def network_options(bundle: str, method: str) -> dict[str, object]:
    """A bundle's own kind of encoder, or a small network at a size that its deepest level divides."""
    return {"image_size": 48, **NETWORKS[method]} if method in NETWORKS else ENCODERS[bundle]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set for each bundle: volumes, which are the hippocampus' with its classes, or X-rays."""
    folder = tmp_path_factory.mktemp("data")
    volumes = write_decathlon_phantoms(folder / "phantoms", cases=7, shape=(16, 20, 10))
    chests = write_chest_phantoms(folder / "chests", cases=7, first_seed=0)
    return {bundle: chests if bundle == "chest_xray" else volumes for bundle in GREY}


def options(bundle: str, method: str, data, work) -> dict[str, object]:
    settings = {**SHORT, **network_options(bundle, method), **paths(bundle, data[bundle], work)}
    if bundle != "chest_xray":
        settings["class_names"] = ["background", "anterior", "posterior"]
        settings["datalist"] = "$medsaga.data.decathlon_datalist(@dataset_dir)"
    return settings


# what changes the groups of parameters alone is tried once with each kind of encoder
@pytest.mark.parametrize(
    ("method", "bundle"),
    [*product(OF_SAM, ("hippocampus", "spleen", "chest_xray")), ("medsaga_paper", "hippocampus"), *OF_NETWORKS],
)
def test_every_method_trains_and_evaluates(method, bundle, data, tmp_path):
    settings = options(bundle, method, data, tmp_path)
    run("training", bundle, "train", overlay(method), **settings)
    last = torch.load(tmp_path / "output" / "last.pt", weights_only=True)
    assert last["progress"] == {"epoch": 1, "iteration": 2}
    # every parameter that is to be trained had a gradient: DistributedDataParallel waits for all of them
    groups = last["optimizer"]["param_groups"]
    assert len(last["optimizer"]["state"]) == sum(len(group["params"]) for group in groups)
    run("evaluating", bundle, "train", "evaluate", overlay(method), **settings)
    rows = list(csv.DictReader((tmp_path / "output" / "evaluation" / "metrics.csv").open()))
    assert len({row["class"] for row in rows}) == (3 if bundle == "chest_xray" else 2)


@pytest.mark.parametrize("method", NETWORKS)
def test_the_same_overlay_segments_new_scans(method, data, tmp_path):
    settings = options("hippocampus", method, data, tmp_path)
    run("training", "hippocampus", "train", overlay(method), **settings)
    scan = sorted((data["hippocampus"] / "imagesTr").iterdir())[0]
    names = {"dataset_dir": str(scan), "output_dir": str(tmp_path / "masks"), "model_path": settings["model_path"]}
    run("evaluating", "hippocampus", "inference", overlay(method), **network_options("hippocampus", method), **names)
    assert len(list((tmp_path / "masks").glob("*_seg.nii.gz"))) == 1
    message = fails("evaluating", "hippocampus", "inference", **ENCODERS["hippocampus"], **names)
    assert settings["model_path"] in message


def parser(bundle: str, method: str) -> ConfigParser:
    config = ConfigParser(ConfigParser.load_config_files(config_files(bundle, "train", overlay(method))))
    settings = {"weights": None, "batch_size": 1, "rank": 4, "device": "$torch.device('cpu')"}
    for key, value in {**settings, **network_options(bundle, method)}.items():
        config[key] = value
    return config


@pytest.mark.parametrize("bundle", GREY)
def test_the_papers_recipe_is_the_same_on_every_bundle(bundle):
    """MedSAGa, eq. 1 and 4 and its section on training: whatever the bundle's own settings are."""
    config = ConfigParser(ConfigParser.load_config_files(config_files(bundle, "train", overlay("medsaga_paper"))))
    for key, value in {"weights": None, "network_def#encoder": "vit_test", "image_size": 64}.items():
        config[key] = value  # the network itself is not built at its size
    optimizer = config.get_parsed_content("optimizer")
    groups = {group["name"]: group for group in optimizer.param_groups}
    galore, decoder = groups["encoder_galore"], groups["decoder"]
    assert (galore["projection"], galore["update_gap"], galore["scale"], galore["lr"]) == ("two-sided", 200, 1.0, 0.001)
    assert decoder["lr"] == 0.005 and decoder["rank"] is None
    assert {(group["betas"], group["weight_decay"]) for group in groups.values()} == {((0.9, 0.999), 0.1)}
    assert optimizer.max_norm is None
    assert (config["warmup_steps"], config["batch_size"], config["prompt_probability"]) == (250, 12, 0)
    assert config.get_parsed_content("loss").lambda_ce == 0.2


def is_of_attention(name: str) -> bool:
    return name.startswith("image_encoder.") and "attn" in name.split(".")


@pytest.mark.parametrize("bundle", ["hippocampus", "spleen"])
@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("medsaga_v1", lambda name: is_of_attention(name) or not name.startswith("image_encoder.")),
        ("medsaga_v2", lambda name: name.startswith("image_encoder.")),
        ("decoder_only", lambda name: not name.startswith("image_encoder.")),
        ("no_warmup", lambda name: True),
    ],
    ids=["medsaga_v1", "medsaga_v2", "decoder_only", "no_warmup"],
)
def test_only_what_the_ablation_says_is_trained(method, wanted, bundle):
    torch.manual_seed(0)
    training = Training(parser(bundle, method))
    network = training.network
    before = {name: value.clone() for name, value in network.named_parameters()}
    never = ("prompt_encoder.p", "prompt_encoder.n", "prompt_encoder.mask", "mask_decoder.iou_prediction_head.")
    used = {n for n in before if not n.startswith(never) or n == "prompt_encoder.no_mask_embed.weight"}
    expected = {name for name in used if wanted(name)}
    training.run(2)
    assert {name for name, value in network.named_parameters() if value.requires_grad} == expected
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed <= expected
    assert {name for name in expected if before[name].ndim > 1} - changed == set()
    # frozen parameters hold no memory but their own
    assert all(value.grad is None for name, value in network.named_parameters() if name not in expected)
    projected = sum(len(g["params"]) for g in training.optimizer.param_groups if g["rank"] is not None)
    assert (projected > 0) == any(name.startswith("image_encoder.") for name in expected)


def test_without_warmup_the_first_step_has_the_full_rate():
    config = parser("spleen", "no_warmup")
    config["lr_scheduler#max_steps"] = 1000
    schedule = config.get_parsed_content("lr_scheduler")
    assert schedule.get_last_lr() == [config["encoder_lr"], config["encoder_lr"], config["lr"]]


@pytest.mark.parametrize("method", NETWORKS)
def test_networks_without_prompts_get_none(method):
    assert parser("hippocampus", method)["prompt_probability"] == 0


@pytest.mark.parametrize(("size", "levels"), [(56, 3), (112, 4), (256, 6), (512, 7)])
def test_dynunet_is_as_deep_as_nnunet_makes_it(size, levels):
    """nnU-Net halves an axis while it is at least twice 4 voxels long; its planner pads to what can be halved."""
    config = parser("hippocampus", "dynunet")
    config["image_size"] = size
    config["network_def#filters"] = None
    with torch.device("meta"):
        network = config.get_parsed_content("network_def")
    assert len(network.upsamples) == levels
    assert network.filters == [min(32 * 2**level, 512) for level in range(levels + 1)]


def test_sgd_resumes_to_the_same_weights(data, tmp_path):
    whole, parts = (options("hippocampus", "dynunet", data, tmp_path / name) for name in ("whole", "parts"))
    for settings in (whole, parts):
        settings.update({"train#trainer#max_epochs": 2, "lr_scheduler#max_steps": 4})
    run("training", "hippocampus", "train", overlay("dynunet"), **whole)
    run("training", "hippocampus", "train", overlay("dynunet"), **{**parts, "train#trainer#max_epochs": 1})
    run("training", "hippocampus", "train", overlay("dynunet"), **parts, resume=True)
    a, b = (torch.load(tmp_path / name / "output" / "last.pt", weights_only=True) for name in ("whole", "parts"))
    assert a["progress"] == b["progress"] == {"epoch": 2, "iteration": 4}
    assert all(torch.equal(value, b["network"][key]) for key, value in a["network"].items())


@pytest.mark.parametrize("bundle", ["hippocampus", "chest_xray"])
def test_a_teacher_labels_volumes_and_pictures_whatever_the_values_of_their_labels(bundle, data, tmp_path):
    settings = options(bundle, "", data, tmp_path / "teacher") | SMALL | {"prompt_probability": 0}
    run("training", bundle, "train", **settings)
    own = settings | {key: str(tmp_path / name) for key, name in (("output_dir", "output"), ("model_path", "model.pt"))}
    own["teacher"] = settings["model_path"]
    run("training", bundle, "train", overlay("self_training"), **own)
    files = sorted((tmp_path / "output" / "teacher_labels").glob("*_seg.*"))
    assert {path.suffix for path in files} == {".png" if bundle == "chest_xray" else ".gz"}
    values = np.unique(np.asarray(Image.open(files[0]) if bundle == "chest_xray" else nib.load(files[0]).dataobj))
    assert values.max() <= 3, "class numbers, where the X-rays' labels hold 150, 200 and 250"
    run("evaluating", bundle, "train", "evaluate", overlay("self_training"), **own)
    assert (tmp_path / "output" / "evaluation" / "metrics.csv").is_file()


def test_every_overlay_is_described():
    page = (ROOT / "docs" / "methods.md").read_text()
    names = [path.name for path in sorted((ROOT / "bundles" / "methods").glob("*.json"))]
    assert [name for name in names if f"`{name}`" not in page] == []
