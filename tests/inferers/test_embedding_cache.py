"""The cache of embeddings."""

import torch

from medsaga.inferers import EmbeddingCache


def test_a_key_is_computed_once():
    cache, calls = EmbeddingCache(), []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.ones(3)

    assert cache.get("a", compute) is cache.get("a", compute)
    assert len(calls) == 1 and "a" in cache and len(cache) == 1


def test_the_least_recently_used_goes_first_and_bytes_stay_below_the_bound():
    cache = EmbeddingCache(max_bytes=3 * 400)
    for key in "abc":
        cache.get(key, lambda: torch.zeros(100))
    cache.get("a", lambda: torch.zeros(100))  # now b is the oldest
    cache.get("d", lambda: torch.zeros(100))
    assert [key in cache for key in "abcd"] == [True, False, True, True]
    assert cache.nbytes == 3 * 400


def test_what_is_larger_than_the_cache_is_returned_and_not_kept():
    cache = EmbeddingCache(max_bytes=100)
    assert cache.get("a", lambda: torch.zeros(100)).shape == (100,)
    assert len(cache) == 0 and cache.nbytes == 0


def test_a_view_counts_with_all_it_holds_on_to():
    cache = EmbeddingCache(max_bytes=1000)
    cache.get("a", lambda: torch.zeros(100)[:1])
    assert cache.nbytes == 400


def test_cleared():
    cache = EmbeddingCache()
    cache.get("a", lambda: torch.zeros(1))
    cache.clear()
    assert len(cache) == 0 and cache.nbytes == 0
