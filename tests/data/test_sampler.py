from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from medsaga.data import EpochSampler


def order(length, seed, epoch):
    sampler = EpochSampler(list(range(length)), seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_every_index_comes_once_with_the_epoch(length):
    pairs = order(length, seed=0, epoch=3)
    assert sorted(pairs) == [(3, index) for index in range(length)]
    assert len(EpochSampler(list(range(length)))) == length


def test_order_is_a_function_of_seed_and_epoch():
    indices = {(seed, epoch): [i for _, i in order(50, seed, epoch)] for seed in (0, 9) for epoch in (1, 2)}
    assert len({tuple(o) for o in indices.values()}) == 4
    assert indices[0, 1] != sorted(indices[0, 1])
    assert [i for _, i in order(50, 9, 2)] == indices[9, 2]


def test_epochs_of_one_sampler_do_not_depend_on_those_before():
    sampler = EpochSampler(list(range(20)), seed=4)
    for epoch in (1, 2, 3):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
    assert pairs == order(20, seed=4, epoch=3)


class Pairs:
    """A data set whose item is what it was asked for."""

    def __len__(self):
        return 5

    def __getitem__(self, item):
        return item


def test_data_loader_passes_the_pairs_on():
    dataset = Pairs()
    sampler = EpochSampler(dataset)
    sampler.set_epoch(2)
    items = [pair for batch in DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=list) for pair in batch]
    assert items == order(5, seed=0, epoch=2)
