"""Slices chosen by class, with noise."""

import math

import pytest
import torch

from medsaga.active_learning import class_stratified, class_uncertainty, power_choice


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_uncertainty_of_a_class_is_entropy_weighted_by_its_probability():
    logits = torch.tensor([[0.0, 0.0, -100.0], [5.0, 0.0, 0.0]]).log_softmax(1)[:, :, None, None]
    found = class_uncertainty(logits)
    half = math.log(2) / math.log(3)
    torch.testing.assert_close(found[0], torch.tensor([half / 2, half / 2, 0.0]))
    p = logits[1, :, 0, 0].softmax(0)
    torch.testing.assert_close(found[1], -(p * p.log()).sum() / math.log(3) * p)


def test_a_large_exponent_takes_the_highest_scores():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert power_choice(scores, 3, 1000.0, generator()) == [1, 3, 2]


def test_draws_are_in_proportion_to_the_power_of_the_score():
    """First draws of many, against the probabilities that the paper gives."""
    scores = torch.tensor([1.0, 2.0, 3.0])
    first = [power_choice(scores, 1, 2.0, generator(seed))[0] for seed in range(3000)]
    shares = torch.bincount(torch.tensor(first)) / 3000
    torch.testing.assert_close(shares, scores**2 / (scores**2).sum(), atol=0.03, rtol=0)


def test_without_an_exponent_all_are_alike():
    first = [power_choice(torch.tensor([1.0, 100.0]), 1, 0.0, generator(seed))[0] for seed in range(400)]
    assert 0.4 < sum(first) / 400 < 0.6


@pytest.mark.parametrize("n", [0, 3, 9])
def test_none_is_drawn_twice(n):
    drawn = power_choice(torch.rand(5, generator=generator()), n, 1.0, generator())
    assert len(drawn) == len(set(drawn)) == min(n, 5)


def test_each_class_has_its_turn():
    """The third class is uncertain in two slices that the sum over classes would never choose."""
    scores = torch.tensor([[0, 9, 0.0], [0, 8, 0.1], [0, 7, 0.0], [0, 0, 1.0], [0, 0, 0.9]])
    assert class_stratified(scores, 4, 1000.0, generator()) == [0, 3, 1, 4]
    assert sorted(class_stratified(scores, 9, 1000.0, generator())) == [0, 1, 2, 3, 4]
