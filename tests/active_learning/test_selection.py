from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from medsaga.active_learning import k_centre, k_medoids, mixed


def points(n: int, seed: int, dimensions: int = 3) -> torch.Tensor:
    return torch.rand(n, dimensions, generator=torch.Generator().manual_seed(seed))


def radius(distances: np.ndarray, centres: list[int]) -> float:
    """Largest distance to the nearest centre."""
    return distances[:, list(centres)].min(axis=1).max()


def greedy(distances: np.ndarray, labelled: list[int], n: int) -> list[int]:
    """The algorithm as it is written down, with all distances at hand."""
    centres = list(labelled)
    for _ in range(n):
        rest = [i for i in range(len(distances)) if i not in centres]
        centres.append(max(rest, key=lambda i: distances[i, centres].min()))
    return centres[len(labelled) :]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("labelled", [[4], [0, 7, 3]])
def test_k_centre_is_the_greedy_algorithm(seed, labelled):
    x = points(12, seed)
    assert k_centre(x, labelled, 5) == greedy(cdist(x.double(), x.double()), labelled, 5)


@pytest.mark.parametrize("seed", range(5))
def test_k_centre_is_within_twice_the_best_of_all_choices(seed):
    x = points(10, seed, dimensions=2)
    distances = cdist(x.double(), x.double())
    best = min(radius(distances, [0, *rest]) for rest in itertools.combinations(range(1, 10), 3))
    assert best <= radius(distances, [0, *k_centre(x, [0], 3)]) <= 2 * best + 1e-9


def test_cold_start_is_the_medoid():
    x = points(15, seed=3)
    distances = cdist(x.double(), x.double())
    chosen = k_centre(x, [], 4)
    assert chosen[0] == distances.sum(axis=1).argmin()
    assert chosen[1:] == greedy(distances, chosen[:1], 3)


def test_each_cluster_is_visited_before_one_is_visited_twice():
    clusters = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]]).repeat_interleave(5, dim=0)
    x = clusters + 0.1 * points(20, seed=0, dimensions=2)
    assert {i // 5 for i in k_centre(x, [2], 3)} == {1, 2, 3}


def test_no_more_than_there_are_and_none_twice():
    x = torch.zeros(4, 2)  # copies of one image
    assert sorted(k_centre(x, [1], 10)) == [0, 2, 3]
    assert sorted(k_centre(x, [], 10)) == [0, 1, 2, 3]
    assert k_centre(x, [0, 1, 2, 3], 1) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("labelled", [[], [4], [0, 7, 3]])
def test_k_medoids_takes_the_image_that_leaves_the_least_distance(seed, labelled):
    x = points(12, seed)
    distances = cdist(x.double(), x.double())
    centres = list(labelled)
    for chosen in k_medoids(x, labelled, 4):
        left = {i: distances[:, [*centres, i]].min(axis=1).sum() for i in range(12) if i not in centres}
        # of two that are nearest to each other either lessens the sum by as much
        assert left[chosen] == pytest.approx(min(left.values()), abs=1e-12)
        centres.append(chosen)
    assert len(centres) == len(labelled) + 4


def test_k_medoids_goes_where_many_are_and_k_centre_to_the_strangest():
    x = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [12.0]])
    assert k_medoids(x, [1], 1) == [4]
    assert k_centre(x, [1], 1) == [6]


def test_k_medoids_takes_candidates_only_and_none_twice():
    x = torch.tensor([[0.0], [1], [2], [3]])
    assert k_medoids(x, [0], 9, candidates=[3, 0, 1]) == [3, 1]
    assert sorted(k_medoids(torch.zeros(4, 2), [1], 10)) == [0, 2, 3]
    assert k_medoids(x, [0, 1, 2, 3], 1) == []


def test_mixed_takes_what_stands_for_most_of_the_most_uncertain():
    x = torch.tensor([[0.0], [1], [2], [3], [4], [5], [6], [7], [8]])
    uncertainty = torch.tensor([9.0, 0.8, 0.9, 0.1, 0.2, 0.3, 0.2, 0.7, 0.0])
    # of 8 unlabelled the quarter is rows 2 and 1
    assert mixed(x, uncertainty, [0], 1) == [2]
    assert mixed(x, uncertainty, [2, 0], 1, share=0.3) == [7], "rows 1, 7 and 5 are left"
    assert sorted(mixed(x, uncertainty, [0], 3)) == [1, 2, 7], "as many as asked for"


def test_mixed_with_the_whole_pool_is_k_medoids_and_with_none_of_it_uncertainty():
    x, uncertainty = points(12, seed=1), points(12, seed=2)[:, 0]
    assert mixed(x, uncertainty, [3, 5], 4, share=1.0) == k_medoids(x, [3, 5], 4)
    rest = [i for i in range(12) if i not in (3, 5)]
    assert mixed(x, uncertainty, [3, 5], 1, share=0.01) == [max(rest, key=lambda i: uncertainty[i])]
