"""Clicks of an annotator who knows the truth, and the command that counts what they are worth."""

import json

import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, ScaleIntensityRangePercentiles

from medsaga.bundle.network import load_network
from medsaga.data import write_decathlon_phantoms
from medsaga.experiments import interactive
from medsaga.experiments.prompting import NetworkAnswers, Object, next_click, prompted
from medsaga.networks import SamSegmenter
from medsaga.transforms import fit_square, undo_fit_square

from ..integration.bundles import ROOT


def disc(row, column, radius, size=40):
    rows, columns = np.mgrid[:size, :size]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_a_click_is_in_the_middle_of_the_largest_wrong_region():
    truth = disc(12, 14, 7)
    empty = np.zeros_like(truth)
    assert next_click(empty, truth) == (12, 14, 1)
    assert next_click(truth, truth) is None
    invented = disc(30, 28, 8)
    assert next_click(truth | invented, truth) == (30, 28, 0)
    assert next_click(invented, truth) == (30, 28, 0), "the larger of a missed and an invented region"
    assert next_click(disc(30, 28, 3), truth) == (12, 14, 1)
    edge = np.zeros_like(truth)
    edge[:, :9] = True
    assert next_click(empty, edge)[1] == 4, "the image's edge is a border"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SamSegmenter("vit_test", 64, num_classes=3).eval()


def test_prompts_reach_the_network_where_they_are(network):
    """Against the network's own call with coordinates worked out by hand: a slice of 32 pixels enlarged to 64."""
    image = torch.rand(1, 32, 32)
    slices = NetworkAnswers(network, image[None], 0, 1)
    large = torch.nn.functional.interpolate(image[None], size=64, mode="bilinear", align_corners=False)
    with torch.no_grad():
        points = (torch.tensor([[[2 * 10.5 - 0.5, 2 * 4.5 - 0.5]]]), torch.tensor([[1.0]]))
        box = torch.tensor([[2 * 3 - 0.5, 2 * 5 - 0.5, 2 * 12 - 0.5, 2 * 9 - 0.5]])
        expected = []
        for prompts in ({"points": points}, {"boxes": box}):
            logits = torch.nn.functional.interpolate(network(large, **prompts), size=64, mode="bilinear")
            logits = torch.nn.functional.interpolate(logits, size=32, mode="bilinear", antialias=True)
            expected.append((logits.argmax(dim=1)[0] == 1).numpy())
        found = [slices.mask(clicks=[(4, 10, 1)]), slices.mask(box=(5, 3, 8, 11))]
    for mask, reference in zip(found, expected):
        np.testing.assert_array_equal(mask, reference)


def test_the_largest_slice_of_each_class_is_prompted(network):
    label = torch.zeros(1, 20, 20, 5, dtype=torch.uint8)
    label[0, 2:5, 2:5, 1] = 1
    label[0, 2:9, 2:9, 3] = 1
    label[0, 12:18, 12:18, 4] = 2
    case = {"image": torch.rand(1, 20, 20, 5), "label": label}
    names = ["background", "one", "two", "absent"]
    found = prompted(network, case, "a", names, [1, 3], 1, "classes")
    assert [(o.name, o.index, o.box) for o in found] == [("one", 3, (2, 2, 8, 8)), ("two", 4, (12, 12, 17, 17))]
    for o in found:
        assert list(o.masks) == ["automatic", "1 click", "3 clicks", "box", "box, 1 click", "box, 2 clicks"]
        assert 1 <= len(o.clicks) <= 3 == len(o.steps) and o.wrong == 0
        row, column, inside = o.clicks[0]
        assert inside == 1 and o.truth[row, column]
        for row, column, inside in o.clicks[1:]:
            assert o.truth[row, column] == inside


@pytest.mark.parametrize("head", ["classes", "sam"])
def test_what_is_not_asked_for_is_not_computed(network, head, monkeypatch):
    """The same masks, and a slice encoded once for all that lies on it."""
    label = torch.zeros(1, 20, 20, 3, dtype=torch.uint8)
    label[0, 2:9, 2:9, 1] = 1
    label[0, 12:18, 12:18, 1] = 2
    case = {"image": torch.rand(1, 20, 20, 3), "label": label}
    given = (network, case, "a", ["background", "one", "two"], [1, 3], 1, head)
    every = prompted(*given)
    encoded, encode = [], network.encode
    monkeypatch.setattr(network, "encode", lambda images: encoded.append(len(images)) or encode(images))
    some = prompted(*given, boxed_at=(0, 2), automatic=False)
    assert encoded == [1]
    assert len(some) == len(every) == 2
    for one, other in zip(some, every):
        assert list(one.masks) == ["1 click", "3 clicks", "box", "box, 2 clicks"]
        for prompt, mask in one.masks.items():
            np.testing.assert_array_equal(mask, other.masks[prompt])


def test_the_command_writes_table_figures_and_picture(network, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    data = write_decathlon_phantoms(tmp_path / "data", cases=4, shape=(24, 32, 8))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    overrides = ["network_def#encoder=vit_test", "image_size=64", "test_patients=2", "val_patients=1"]
    words = ["--dataset_dir", str(data), "--model", str(tmp_path / "model.pt"), "--clicks", "1,2"]
    words += ["--output", str(tmp_path / "out"), "--override", *overrides, "train_patients=1"]
    interactive.main(words)
    printed = capsys.readouterr().out
    assert "4 objects, each class of 2 unseen cases" in printed and "seed 0" in printed
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert rows[0] == ["Class", "automatic", "1 click", "2 clicks", "box", "box, 1 click", "box, 2 clicks", "N"]
    assert [(row[0], row[-1]) for row in rows[2:]] == [("anterior", "2"), ("posterior", "2"), ("all", "4")]
    content = json.loads((tmp_path / "out" / "interactive_hippocampus.json").read_text())
    mean = np.mean([o["dice"]["box"] for o in content["objects"]])
    assert content["dice"]["all"]["box"]["mean"] == pytest.approx(mean)
    assert rows[-1][4].startswith(f"{mean:.3f}")
    assert (tmp_path / "out" / "interactive_hippocampus.png").stat().st_size > 1000


def test_published_weights_are_prompted_as_they_come(tmp_path, capsys, monkeypatch):
    """By SAM's own head, at the size they were trained at; without prompts they do nothing."""
    monkeypatch.chdir(ROOT)
    data = write_decathlon_phantoms(tmp_path / "data", cases=4, shape=(24, 32, 8))
    words = ["--dataset_dir", str(data), "--weights", "lite_medsam", "--own", "--clicks", "1"]
    words += ["--output", str(tmp_path / "out")]
    interactive.main([*words, "--override", "test_patients=1", "val_patients=1", "train_patients=1"])
    content = json.loads((tmp_path / "out" / "interactive_hippocampus.json").read_text())
    assert list(content["dice"]["all"]) == ["1 click", "box", "box, 1 click", "box, 2 clicks"]
    network, _ = load_network(weights="lite_medsam")
    shown = content["objects"][0]
    assert shown["dice"]["box"] == pytest.approx(_by_hand(network, data, shown), abs=1e-6)


def _by_hand(network, data, shown):
    """Dice of LiteMedSAM's first mask in the box of anterior."""
    load = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    load = Compose([load, Orientationd(["image", "label"], "PLS")])
    file = f"{shown['case']}.nii.gz"
    case = load({"image": data / "imagesTr" / file, "label": data / "labelsTr" / file})
    scaled = ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)(case["image"])
    image, truth = scaled.as_tensor()[..., shown["slice"]], case["label"][0, ..., shown["slice"]].numpy() == 1
    rows, columns = np.nonzero(truth)
    box = torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]) * 256 / max(truth.shape) - 0.5
    with torch.no_grad():
        logits = network(fit_square(image[None], 256), boxes=box)
    mask = undo_fit_square(logits, 256, truth.shape)[0, 0].numpy() > 0
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


def test_what_the_app_answers_for_one_image(network, tmp_path, capsys, monkeypatch):
    """By default, and for an image with its label in the place of a data set."""
    monkeypatch.chdir(ROOT)
    data = write_decathlon_phantoms(tmp_path / "data", cases=1, shape=(24, 32, 8))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (image,) = (data / "imagesTr").glob("*.nii.gz")
    words = ["--image", str(image), "--label", str(data / "labelsTr" / image.name), "--slices", "3", "--clicks", "1,4"]
    words += ["--model", str(tmp_path / "model.pt"), "--output", str(tmp_path / "out"), "--pixels", "10", "--override"]
    interactive.main([*words, "network_def#encoder=vit_test", "image_size=64"])
    content = json.loads((tmp_path / "out" / "interactive_hippocampus.json").read_text())
    assert content["sequences"]["clicks on the wrong side"] == 0
    assert 4 < len(content["objects"]) <= 6, "two classes on three slices each, but for the smallest"
    for shown in content["objects"]:
        assert len(shown["steps"]) == 4 and shown["steps"][-1] == shown["dice"]["4 clicks"]
    assert "clicks to Dice 0.9, median" in capsys.readouterr().out


def test_losses_and_good_sequences_are_counted():
    steps = [[0.5, 0.95, 0.96], [0.6, 0.57, 0.7], [0.9, 0.885, 0.885]]
    truth = disc(12, 14, 7)
    objects = [Object("a", "b", 0, truth, truth, steps=values, wrong=n) for n, values in enumerate(steps)]
    assert list(interactive.sequences(objects).values()) == [3, pytest.approx(1 / 3), 2]
