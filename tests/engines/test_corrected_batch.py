"""Prompts drawn from where the network errs, and what a batch with them is trained on."""

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer

from medsaga.engines import OneClassInferer, PrepareCorrectedBatch
from medsaga.engines.corrected_batch import one_against_rest
from medsaga.losses import LogitResolutionDiceCELoss
from medsaga.networks import SamSegmenter


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = SamSegmenter("vit_test", 64, num_classes=3)
    for mlp in network.mask_decoder.output_hypernetworks_mlps:  # sure of something, and wrong
        torch.nn.init.normal_(mlp.layers[-1].weight, std=1.0)
    return network


@pytest.fixture
def batch():
    label = torch.zeros(3, 1, 64, 64, dtype=torch.uint8)
    label[0, 0, 4:20, 6:30] = 1
    label[1, 0, 20:50, 2:29] = 2
    label[1, 0, 2:16, 30:60] = 1
    return {"image": torch.rand(3, 1, 64, 64), "label": label}  # the third shows no object


def predicted(network, batch, points, boxes, masks, classes):
    """The mask on the label's pixels, and as a prompt."""
    logits = network(batch["image"], points, boxes, masks)
    full = torch.nn.functional.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    seen, fine = ((x.argmax(dim=1) == classes.view(-1, 1, 1)) for x in (logits, full))
    return fine, torch.where(seen, 10.0, -10.0)[:, None]


@torch.no_grad()
def test_every_click_is_where_the_network_errs(network, batch):
    """Each click is checked against the network prompted by all before it, and by the mask that they gave."""
    prepare = PrepareCorrectedBatch(network, 1.0, max_clicks=4)
    torch.manual_seed(0)
    checked = {0: 0, 1: 0, -1: 0}
    for _ in range(8):
        _, target, _, prompts = prepare(batch)
        classes, boxes = prompts["classes"], prompts.get("boxes")
        for item, number in enumerate(classes.tolist()):
            assert torch.equal(target[item], (batch["label"][item] == number).to(torch.uint8))
            assert number in ({1}, {1, 2}, {1, 2})[item]
        if "points" not in prompts:
            assert boxes is not None
            continue
        points, labels = prompts["points"]
        masks = None
        for count in range(points.shape[1]):
            if count == 0 and boxes is None:
                mask = torch.zeros(3, 64, 64, dtype=torch.bool)
            else:
                given = (points[:, :count], labels[:, :count]) if count else None
                mask, masks = predicted(network, batch, given, boxes, masks, classes)
            wrong = mask != target[:, 0].bool()
            for item in range(3):
                x, y = (int(v) for v in points[item, count])
                label = int(labels[item, count])
                checked[label] += 1
                if label == -1:
                    assert not wrong[item].any()
                else:
                    assert wrong[item, y, x] and int(target[item, 0, y, x]) == label
        assert torch.equal(prompts["masks"], masks) if masks is not None else "masks" not in prompts
    assert checked[0] and checked[1]


def draws(network, batch, number=20, seed=0, max_clicks=3):
    torch.manual_seed(seed)
    prepare = PrepareCorrectedBatch(network, 1.0, max_clicks)
    return [prepare(batch)[3] for _ in range(number)]


def test_clicks_boxes_and_both_occur_and_each_class_has_its_turn(network, batch):
    found = draws(network, batch)
    kinds = {("points",), ("boxes",), ("masks", "points"), ("boxes", "masks", "points")}
    assert {tuple(sorted(set(p) - {"classes"})) for p in found} == kinds
    assert {tuple(p["classes"][:2].tolist()) for p in found} == {(1, 1), (1, 2)}
    assert {p["points"][0].shape[1] for p in found if "boxes" not in p} == {1, 2, 3}


def test_the_same_seed_draws_the_same(network, batch):
    for first, second in zip(draws(network, batch, 6), draws(network, batch, 6)):
        assert first.keys() == second.keys()
        assert all(torch.equal(a, b) for a, b in zip(first.get("points", ()), second.get("points", ())))


def test_the_share_of_batches_with_prompts(network, batch):
    torch.manual_seed(0)
    prepare = PrepareCorrectedBatch(network, 0.25, max_clicks=1)
    prompted = 0
    for _ in range(200):
        image, target, args, prompts = prepare(batch)
        prompted += bool(prompts)
        assert torch.equal(image, batch["image"]) and args == ()
        assert prompts or torch.equal(target, batch["label"])
    assert abs(prompted / 200 - 0.25) < 0.1


def test_neighbouring_slices_are_laid_flat(network, batch):
    chunks = {key: torch.stack([value[:2], value[1:]]) for key, value in batch.items()}
    image, label, _, _ = PrepareCorrectedBatch(network, 0.0)(chunks)
    assert torch.equal(image, torch.cat([batch["image"][:2], batch["image"][1:]]))
    assert torch.equal(label, torch.cat([batch["label"][:2], batch["label"][1:]]))
    _, target, _, prompts = PrepareCorrectedBatch(network, 1.0, max_clicks=1)(chunks)
    assert target.shape == (4, 1, 64, 64) and prompts["classes"].shape == (4,)


def test_two_logits_have_the_softmax_of_all():
    logits = torch.randn(4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([1, 2, 0, 1])
    two = one_against_rest(logits, classes).softmax(dim=1)
    expected = logits.softmax(dim=1)[torch.arange(4), classes]
    torch.testing.assert_close(two[:, 1], expected)
    gradient = torch.autograd.grad(two[:, 1].square().sum(), logits)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), logits)[0])


def test_a_trainer_runs_with_them(network, batch):
    """MONAI's trainer, its loss on both kinds of batches, and every trainable parameter gets a gradient."""
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[batch] * 8,
        network=network,
        optimizer=torch.optim.AdamW(parameters, lr=1e-4),
        loss_function=LogitResolutionDiceCELoss(),
        inferer=OneClassInferer(),
        prepare_batch=PrepareCorrectedBatch(network, 0.5, max_clicks=2),
        decollate=False,
    )
    channels = set()

    def look(engine):
        channels.add((engine.state.output["pred"].shape[1], int(engine.state.output["label"].max())))
        assert torch.isfinite(engine.state.output["loss"]) and all(p.grad is not None for p in parameters)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    torch.manual_seed(0)
    trainer.run()
    assert channels == {(2, 1), (3, 2)}


@pytest.mark.parametrize("options, message", [({"probability": 1.5}, "0 to 1"), ({"max_clicks": 0}, "at least 1")])
def test_what_does_not_fit_is_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        PrepareCorrectedBatch(network, **{"probability": 0.5, **options})


def test_boxes_are_near_the_object(network, batch):
    one = {key: value[:1] for key, value in batch.items()}
    boxes = torch.cat([p["boxes"] for p in draws(network, one, 400, max_clicks=1) if "boxes" in p])
    expected = torch.tensor([5.5, 3.5, 29.5, 19.5])
    assert (boxes - expected).abs().max() < 10 and len(boxes) > 150
    torch.testing.assert_close(boxes.mean(dim=0), expected, atol=0.6, rtol=0)


@torch.no_grad()
def test_what_is_not_labelled_gets_no_click_and_no_target(network, batch):
    label = batch["label"].clone()
    label[:, :, 40:] = 255
    prepare = PrepareCorrectedBatch(network, 1.0, max_clicks=5)
    torch.manual_seed(0)
    for _ in range(6):
        _, target, _, prompts = prepare({"image": batch["image"], "label": label})
        assert (target[:, :, 40:] == 255).all() and (target[:, :, :40] <= 1).all()
        assert set(prompts["classes"].tolist()) <= {1, 2}
        if "points" in prompts:
            points, labels = prompts["points"]
            assert (points[..., 1][labels >= 0] < 40).all()
