"""Shares of an epoch by modality, whatever the number of slices of each."""

from __future__ import annotations

import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandGaussianNoised
from torch.utils.data import DataLoader

from medsaga.data import BalancedSampler, EpochSampler, SliceDataset

SHARES = {"CT": 0.4, "MR": 0.1, "others": 0.5}


class Slices:
    """What a sampler asks of a slice data set: which case each slice is of."""

    def __init__(self, cases, counts):
        """counts: slices of each case."""
        self.cases = [SimpleNamespace(case=case) for case in cases]
        self.slices = [(case, i) for case, count in enumerate(counts) for i in range(count)]

    def __len__(self):
        return len(self.slices)


def sampler(modalities, shares=SHARES, seed=0):
    """modalities: modality and number of slices of each case."""
    data = [{"image": f"{i}.nii.gz", "modality": m} for i, (m, _) in enumerate(modalities)]
    return BalancedSampler(Slices(data, [count for _, count in modalities]), shares, seed)


def epoch(sampler, number):
    sampler.set_epoch(number)
    return list(sampler)


def counted(sampler, modalities, number=1):
    names = [m for m, count in modalities for _ in range(count)]
    return Counter(names[index] for _, index in epoch(sampler, number))


def test_modalities_have_their_shares_whatever_there_is_of_them():
    modalities = [("CT", 10), ("MR", 700), ("US", 30), ("XRay", 200), ("US", 60)]
    balanced = sampler(modalities)
    found = counted(balanced, modalities)
    assert found["CT"] == 400 and found["MR"] == 100 and found["US"] + found["XRay"] == 500
    assert len(balanced) == 1000


def test_a_larger_modality_gives_other_slices_in_each_epoch_and_none_twice():
    balanced = sampler([("CT", 20), ("MR", 80)], {"CT": 0.5, "MR": 0.5})
    drawn = [[i for _, i in epoch(balanced, e) if i >= 20] for e in range(1, 9)]
    assert all(len(set(one)) == len(one) == 50 for one in drawn)
    assert len({tuple(sorted(one)) for one in drawn}) == 8
    assert set().union(*drawn) == set(range(20, 100))


def test_a_smaller_modality_comes_equally_often_but_for_one_time():
    balanced = sampler([("CT", 20), ("MR", 180)], {"CT": 0.65, "MR": 0.35})
    times = Counter(i for _, i in epoch(balanced, 3) if i < 20)
    assert sum(times.values()) == 130 and set(times) == set(range(20)) and set(times.values()) == {6, 7}


def test_a_slice_that_comes_again_in_an_epoch_is_not_asked_for_by_the_same_pair():
    pairs = epoch(sampler([("CT", 3), ("MR", 97)], {"CT": 0.5, "MR": 0.5}), 5)
    assert len(set(pairs)) == len(pairs)
    once = [index for number, index in pairs if number == 5]
    assert sorted(i for i in once if i < 3) == [0, 1, 2]


def test_order_is_a_function_of_seed_and_epoch():
    modalities = [("CT", 20), ("MR", 30)]
    orders = {
        (seed, e): epoch(sampler(modalities, {"CT": 0.6, "others": 0.4}, seed), e) for seed in (0, 9) for e in (1, 2)
    }
    assert len({tuple(o) for o in orders.values()}) == 4
    resumed = sampler(modalities, {"CT": 0.6, "others": 0.4}, 9)
    assert epoch(resumed, 2) == orders[9, 2]
    assert [i < 20 for _, i in orders[0, 1]] != sorted((i < 20 for _, i in orders[0, 1]), reverse=True), "mixed"


def test_one_modality_alone_is_a_plain_shuffle(caplog):
    with caplog.at_level(logging.WARNING):
        balanced = sampler([(None, 12)])
    assert "CT, MR" in caplog.text
    pairs = epoch(balanced, 4)
    assert sorted(pairs) == [(4, i) for i in range(12)] and pairs != sorted(pairs)


def test_the_share_of_an_absent_modality_goes_to_the_rest_in_proportion():
    modalities = [("CT", 50), ("US", 50)]
    assert counted(sampler(modalities), modalities) == {"CT": 44, "US": 56}  # 4 : 5


@pytest.mark.parametrize("length", [7, 10, 11, 99])
def test_an_epoch_is_as_long_as_the_data_set(length):
    modalities = [("CT", length - 3), ("MR", 2), ("US", 1)]
    assert len(epoch(sampler(modalities), 1)) == length


@pytest.mark.parametrize("replicas", [2, 3])
def test_processes_draw_one_order_in_parts(replicas):
    whole = sampler([("CT", 20), ("MR", 31)], {"CT": 0.6, "MR": 0.4})
    parts = []
    for rank in range(replicas):
        part = sampler([("CT", 20), ("MR", 31)], {"CT": 0.6, "MR": 0.4})
        part.num_replicas, part.rank, part.num_samples = replicas, rank, -(-51 // replicas)
        part.total_size = part.num_samples * replicas
        parts.append(epoch(part, 2))
    pairs = epoch(whole, 2)
    joined = [pair for together in zip(*parts) for pair in together]
    assert joined == (pairs + pairs)[: len(joined)] and len(joined) - 51 < replicas


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"CT": 0.4, "MR": 0.4}, "sum to 1"),
        ({"CT": 1.4, "MR": -0.4}, "positive"),
        ({}, "positive"),
        ({"CT": 1.0}, "1.nii.gz is of modality 'MR'"),
    ],
)
def test_wrong_shares_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        sampler([("CT", 5), ("MR", 5)], shares)


def test_feeds_slices_to_a_loader_each_with_augmentation_of_its_own(write_case, preprocessing, tmp_path):
    cases = [{**write_case("a", 0, (2, 7, 6)), "modality": "CT"}, {**write_case("b", 1, (14, 7, 6)), "modality": "MR"}]
    noise = Compose([RandGaussianNoised("image", prob=1.0, std=0.1)])
    dataset = SliceDataset(cases, preprocessing(), 3, tmp_path / "cache", noise)
    balanced = BalancedSampler(dataset, {"CT": 0.5, "MR": 0.5})
    assert isinstance(balanced, EpochSampler)
    balanced.set_epoch(2)
    images = torch.cat([batch["image"] for batch in DataLoader(dataset, batch_size=4, sampler=balanced)])
    assert len(images) == 16 and len(np.unique(images.numpy(), axis=0)) == 16
    assert torch.equal(images, torch.cat([b["image"] for b in DataLoader(dataset, batch_size=4, sampler=balanced)]))
