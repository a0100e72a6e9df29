"""Federated training: MONAI's client over a bundle, two sites in two processes."""

from __future__ import annotations

import json

import pytest
import torch
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from medsaga.data import write_decathlon_phantoms
from medsaga.experiments.federated import Sites, federated
from medsaga.federated import TrainedOnly, averaged
from medsaga.networks import SamSegmenter

from ..integration.bundles import ROOT, SMALL

OPTIONS = {
    **{key: value for key, value in SMALL.items() if value is not None},
    "device": "$torch.device('cpu')",
    "weights": "$None",
    "batch_size": 4,
    "num_slices": 8,
    "warmup_steps": 1,
    "test_patients": 1,
    "val_patients": 0,
    "train_patients": "$None",
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_decathlon_phantoms(tmp_path_factory.mktemp("data"), cases=5, shape=(24, 32, 12))


def test_the_average_moves_the_weights_by_the_sites_slices():
    weights = {"a": torch.tensor([1.0, 2.0]), "frozen": torch.tensor([5.0]), "count": torch.tensor(3)}
    differences = [{"a": torch.tensor([4.0, 0.0])}, {"a": torch.tensor([0.0, 8.0]), "count": torch.tensor(1)}]
    result = averaged(weights, differences, [30, 10])
    assert result["a"].tolist() == [4.0, 4.0] and result["frozen"].tolist() == [5.0] and result["count"] == 3
    assert weights["a"].tolist() == [1.0, 2.0]


def test_what_has_not_changed_is_not_sent():
    sent = ExchangeObject({"a": torch.ones(2), "b": torch.zeros(2)}, weight_type=WeightType.WEIGHT_DIFF)
    assert list(TrainedOnly()(sent).weights) == ["a"]
    with pytest.raises(ValueError, match="send_weight_diff"):
        TrainedOnly()(ExchangeObject({}, weight_type=WeightType.WEIGHTS))


def test_two_sites_train_one_network_and_send_what_they_train(phantoms, tmp_path):
    names = sorted(path.name.removesuffix(".nii.gz") for path in (phantoms / "imagesTr").iterdir())
    splits = []
    for number, train in enumerate((names[:2], names[2:4])):
        splits.append(tmp_path / f"{number}.json")
        splits[-1].write_text(json.dumps({"train": train, "validation": [], "test": []}))
    options = {**OPTIONS, "dataset_dir": str(phantoms)}
    sites = Sites(ROOT / "bundles" / "hippocampus", splits, 2, 1, options, tmp_path)
    weights, megabytes = federated(sites)
    network = SamSegmenter("vit_test", image_size=64, num_classes=3, train_prompts=True)
    network.load_state_dict(weights)
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad) / 1e6
    assert 0 < megabytes <= trained
    for number, split in enumerate(splits):
        last = torch.load(tmp_path / f"site{number}" / "output" / "last.pt", weights_only=True)
        assert last["progress"]["epoch"] == 2
        assert last["record"]["train"] == json.loads(split.read_text())["train"]
        # a site ends beside the average, not on it
        assert not torch.equal(last["network"]["image_encoder.neck.0.weight"], weights["image_encoder.neck.0.weight"])


def test_a_site_that_ends_is_said(phantoms, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["nobody"], "validation": [], "test": []}))
    sites = Sites(ROOT / "bundles" / "hippocampus", [split], 1, 1, {**OPTIONS, "dataset_dir": str(phantoms)}, tmp_path)
    with pytest.raises(RuntimeError, match="site 1 has ended"):
        federated(sites)
