"""Several trainings on one cache, a bounded one, and what ended processes leave."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from monai.transforms import Lambdad

from medsaga.data.cache_room import Room
from medsaga.data.cache_run import RUNS, Run
from medsaga.data.slice_cache import cache_cases, prepare_cases

from .. import forks
from ..waiting import until
from .test_slice_cache import CALLS, age, count, entries, records, slices_of, state

GIGABYTE = 1e9
SIZE = 822  # bytes of an entry of write_case: five slices of 7×6 and numpy's header


@pytest.fixture
def limit(monkeypatch):
    """Sets how many entries the cache may have."""
    return lambda number: monkeypatch.setenv("MEDSAGA_CACHE_GB", str(number * SIZE / GIGABYTE))


def runs(cache):
    return [path for path in (cache / RUNS).iterdir() if path.is_dir()]


def slowly(x):
    time.sleep(0.05)
    return count(x)


# --- at once ---------------------------------------------------------------------------------------------------------


def test_of_two_trainings_that_start_together_each_case_is_made_by_one(tmp_path, preprocessing, write_case):
    cases, start = [write_case(str(i), i) for i in range(6)], Barrier(2)

    def train(order):
        start.wait()
        return cache_cases(order, preprocessing(extra=(Lambdad("image", slowly),)), 3, tmp_path / "cache")

    CALLS.clear()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(train, (cases, cases[::-1]))
    assert len(CALLS) == 6
    for one, other in zip(first, second[::-1]):
        assert all(np.array_equal(*pair) for pair in zip(slices_of(one), slices_of(other)))
    assert len(runs(tmp_path / "cache")) == 2
    del first, second, one, other
    assert list((tmp_path / "cache" / RUNS).iterdir()) == []


def test_other_preprocessing_at_the_same_time_takes_nothing_away(tmp_path, preprocessing, write_case):
    cases, start = [write_case(str(i), i) for i in range(4)], Barrier(2)

    def train(lower):
        start.wait()
        cached = cache_cases(cases, preprocessing(lower=lower), 3, tmp_path / "cache")
        return cached, [slices_of(case)[0] for case in cached]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(train, (0.5, 10.0)))
    for cached, images in results:
        assert all(np.array_equal(slices_of(case)[0], image) for case, image in zip(cached, images))
    assert len(entries(tmp_path / "cache")) == 8


def test_the_old_entry_of_a_changed_file_stays_while_a_training_needs_it(
    tmp_path, preprocessing, write_case, write_nifti
):
    case, cache = write_case("a"), tmp_path / "cache"
    (running,) = cache_cases([case], preprocessing(), 3, cache)
    before = slices_of(running)[1]
    write_nifti(Path(case["label"]), np.zeros((5, 7, 6), np.uint8))
    (later,) = cache_cases([case], preprocessing(), 3, cache)
    assert np.array_equal(slices_of(running)[1], before)
    assert not slices_of(later)[1].any()
    (cache / f"{running.name}.npy").unlink()
    with pytest.raises(ValueError, match=r"labels/a\.nii\.gz: the case has changed since the training began"):
        running.read(0)


def test_a_training_goes_on_when_its_cache_is_removed(tmp_path, preprocessing, write_case):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    cached = cache_cases(cases, preprocessing(), 3, cache)
    before = [slices_of(case) for case in cached]
    shutil.rmtree(cache)
    for case, (image, label) in zip(cached, before):
        again = slices_of(case)
        assert np.array_equal(again[0], image) and np.array_equal(again[1], label)


def test_a_process_that_loads_data_does_not_hold_the_run(tmp_path, preprocessing, write_case):
    cached = cache_cases([write_case("a")], preprocessing(), 3, tmp_path / "cache")
    (copy,) = pickle.loads(pickle.dumps(cached))
    before = slices_of(cached[0])
    del cached
    assert runs(tmp_path / "cache") == []
    assert all(np.array_equal(*pair) for pair in zip(slices_of(copy), before))


# --- bounded ---------------------------------------------------------------------------------------------------------


def test_the_longest_unused_go_first(tmp_path, preprocessing, write_case, limit):
    cases, cache = [write_case(str(i), i) for i in range(4)], tmp_path / "cache"
    names = [cache_cases([case], preprocessing(), 3, cache)[0].name for case in cases[:3]]
    for days, name in zip((1, 3, 2), names):
        age(cache / f"{name}.npy", days)
        age(cache / f"{name}.json", days)
    limit(3.5)
    (new,) = cache_cases(cases[3:], preprocessing(), 3, cache)
    assert set(entries(cache)) == {names[0], names[2], new.name}
    assert len(records(cache)) == 4  # that the case can be used is still known


def test_what_a_running_training_needs_stays_and_the_other_trains_without(
    tmp_path, preprocessing, write_case, limit, caplog
):
    cases, cache = [write_case(str(i), i) for i in range(3)], tmp_path / "cache"
    limit(3.5)
    running = cache_cases(cases, preprocessing(), 3, cache)
    before = state(cache)
    other = preprocessing(lower=10.0, extra=(Lambdad("image", count),))
    CALLS.clear()
    with caplog.at_level(logging.WARNING):
        cached = cache_cases(cases, other, 3, cache)
    assert state(cache) == before
    assert "The slices of 3 of 3 training cases do not fit" in caplog.text and "MEDSAGA_CACHE_GB" in caplog.text
    assert len(CALLS) == 3
    assert [case.classes.shape for case in cached] == [(5, 3)] * 3
    direct = other(cases[1])
    assert np.abs(slices_of(cached[1])[0] - np.moveaxis(np.asarray(direct["image"]), -1, 0)).max() <= 1 / 2048
    CALLS.clear()
    cache_cases(cases, other, 3, cache)  # the next start does not try again
    assert CALLS == []
    del running, cached
    assert len(cache_cases(cases, other, 3, cache)) == len(CALLS) == 3  # but does when there is room
    assert len(entries(cache)) == 3 and not set(before) & set(state(cache))


def test_a_cache_for_some_of_the_cases_keeps_those(tmp_path, preprocessing, write_case, limit):
    cases, cache = [write_case(str(i), i) for i in range(5)], tmp_path / "cache"
    limit(2.5)
    cached = cache_cases(cases, preprocessing(), 3, cache)
    assert len(entries(cache)) == 2
    assert sum(path.stat().st_size for path in cache.glob("*.npy")) <= 2.5 * SIZE
    limit(10)
    whole = cache_cases(cases, preprocessing(), 3, tmp_path / "whole")
    for one, other in zip(cached, whole):
        assert all(np.array_equal(*pair) for pair in zip(slices_of(one), slices_of(other)))


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_named(tmp_path, preprocessing, write_case, monkeypatch, value):
    monkeypatch.setenv("MEDSAGA_CACHE_GB", value)
    with pytest.raises(ValueError, match=f"MEDSAGA_CACHE_GB is '{value}': set it to the gigabytes"):
        cache_cases([write_case("a")], preprocessing(), 3, tmp_path / "cache")


@pytest.fixture
def small_disk(mount, tmp_path):
    """A file system of 256 kB and 24 files."""
    return mount(tmp_path / "disk", "256k,nr_inodes=24")


@pytest.mark.parametrize("value", ["", "1"])
def test_on_a_small_disk_what_does_not_fit_is_not_kept(small_disk, preprocessing, write_case, monkeypatch, value):
    monkeypatch.setenv("MEDSAGA_CACHE_GB", value)
    cases = [write_case(str(i), i, (20, 32, 32)) for i in range(6)]  # of 62 kB each
    cached = cache_cases(cases, preprocessing(), 3, small_disk / "cache")
    assert 1 <= len(entries(small_disk / "cache")) <= 4
    assert all(slices_of(case)[0].shape == (20, 1, 32, 32) for case in cached)


def test_without_a_limit_a_fifth_of_the_disk_is_left(small_disk, monkeypatch):
    monkeypatch.delenv("MEDSAGA_CACHE_GB", raising=False)
    (small_disk / "other").write_bytes(bytes(100 * 1024))
    assert Room(small_disk).limit == pytest.approx(0.8 * 156 * 1024, abs=0.8 * 8 * 1024)
    name = "-".join(["0123456789abcdef"] * 3)
    (small_disk / f"{name}.npy").write_bytes(bytes(64 * 1024))  # what the cache takes is its own
    assert Room(small_disk).limit == pytest.approx(0.8 * 156 * 1024, abs=0.8 * 8 * 1024)


def test_a_full_disk_is_an_error_and_leaves_nothing_half(small_disk, preprocessing, write_case):
    cases, cache = [write_case(str(i), i) for i in range(12)], small_disk / "cache"
    with pytest.raises(OSError, match=r"No space left on device: .*cache cannot hold .* MEDSAGA_CACHE_GB"):
        cache_cases(cases, preprocessing(), 3, cache)  # more files than there may be
    assert {path.stat().st_size for path in cache.glob("*.npy")} == {SIZE}
    assert [path for path in (cache / RUNS).rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    cached = cache_cases(cases[: len(records(cache))], preprocessing(), 3, cache)  # and what is there is used
    assert len(cached) > 5 and all(slices_of(case)[0].shape == (5, 1, 7, 6) for case in cached)


# --- ended processes -------------------------------------------------------------------------------------------------

BUILD = """
import json, sys, time
from monai.transforms import Lambdad
from medsaga.data.slice_cache import cache_cases
from tests.data.conftest import _preprocessing
cases, folder = json.loads(sys.argv[1]), sys.argv[2]
def wait(x):
    open(folder + "/began", "a").close()
    time.sleep(600)
cache_cases(cases[:1], _preprocessing(), 3, folder + "/cache")
cache_cases(cases[1:], _preprocessing(extra=(Lambdad("image", wait),)), 3, folder + "/cache")
"""


def test_what_a_killed_build_left_goes_at_the_next_start(tmp_path, preprocessing, write_case):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    words = [sys.executable, "-W", "ignore", "-c", BUILD, json.dumps(cases), str(tmp_path)]
    process = forks.start(words, tmp_path / "log", Path(__file__).parents[2], dict(os.environ))
    until((tmp_path / "began").exists, process=process)
    (run,) = runs(cache)
    (run / "half").write_bytes(b"an entry that was being written")
    cache_cases(cases[:1], preprocessing(), 3, cache)
    assert runs(cache) == [run]  # it is still running
    process.kill()
    process.wait()
    cache_cases(cases, preprocessing(), 3, cache)
    assert runs(cache) == []
    assert len(entries(cache)) == 2


def test_runs_on_other_computers_are_over_after_a_day_without_a_sign(tmp_path, preprocessing, write_case, limit):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    (first,) = cache_cases(cases[:1], preprocessing(), 3, cache)
    name, needed = first.name, cache / f"{first.name}.npy"
    del first
    other, lock = cache / RUNS / "other_host-0123456789ab", cache / RUNS / "other_host-0123456789ab.lock"
    other.mkdir()
    lock.touch()
    (other / "entries").write_text(name)
    limit(1.5)
    cache_cases(cases[1:], preprocessing(), 3, cache)
    assert needed.exists()
    age(lock, 2)
    cache_cases(cases[1:], preprocessing(), 3, cache)
    assert not needed.exists() and not other.exists() and not lock.exists()


def test_a_run_in_a_cache_of_somebody_else_is_none(tmp_path):
    (tmp_path / RUNS).write_text("no folder can be made here")
    run = Run(tmp_path)
    run.uses(["a"])
    assert run.folder is None


# --- network file systems --------------------------------------------------------------------------------------------

FAILURES = []


def fails_in_passing(x):
    if FAILURES:
        raise OSError(FAILURES.pop(), "a network file system failed")
    return x


@pytest.mark.parametrize(
    ("numbers", "works"),
    [([errno.ESTALE], True), ([errno.EIO], True), ([errno.EIO] * 2, False), ([errno.EPERM], False)],
)
def test_reading_that_failed_in_passing_is_tried_once_more(tmp_path, preprocessing, write_case, numbers, works):
    FAILURES[:] = numbers
    used = preprocessing(extra=(Lambdad("image", fails_in_passing),))
    cached, failures = prepare_cases([write_case("a")], (), used, 3, tmp_path / "cache")
    assert (len(cached), len(failures)) == ((1, 0) if works else (0, 1))
    assert os.path.basename(failures[0].file) == "a.nii.gz" if failures else works
