"""Strategies that choose slices, on phantoms and on known results."""

import json
import re

import pandas as pd
import pytest
import torch

from medsaga.data import write_decathlon_phantoms
from medsaga.experiments import slice_choice
from medsaga.experiments.slice_choice import STRATEGIES, Pool, choose, forecasts, page
from medsaga.networks import SamSegmenter

from ..integration.bundles import ROOT


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SamSegmenter("vit_test", 64, 3).eval()


@pytest.fixture(scope="module")
def pool(network):
    """Three volumes of ten slices; slices 3 to 6 of each show the first class, 5 the second, too."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(30, 1, 16, 16, dtype=torch.uint8)
    classes = torch.zeros(30, 2, dtype=torch.bool)
    for volume in range(3):
        classes[volume * 10 + 3 : volume * 10 + 7, 0] = True
        classes[volume * 10 + 5, 1] = True
    labels[classes[:, 0], :, 2:8, 2:8] = 1
    labels[classes[:, 1], :, 8:12, 8:12] = 2
    embeddings = torch.rand(30, 256, 4, 4, generator=generator).half()
    return Pool(embeddings, labels, torch.arange(3).repeat_interleave(10), classes)


def test_clicks_are_two_for_a_box_and_one_for_nothing(pool):
    assert pool.clicks([0, 3, 5]) == 1 + 2 + 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_new_slices_that_the_seed_decides(strategy, network, pool):
    labelled = [3, 13, 0]
    chosen = choose(strategy, network, pool, labelled, 8, 1, seed=0)
    assert len(set(chosen)) == 8 and not set(chosen) & set(labelled)
    assert choose(strategy, network, pool, labelled, 8, 1, seed=0) == chosen
    if strategy in ("foreground", "random", "clasp"):
        assert any(choose(strategy, network, pool, labelled, 8, 1, seed=seed) != chosen for seed in (1, 2))


def test_all_but_whole_volumes_begin_with_the_same_slices(pool):
    first = {tuple(choose(strategy, None, pool, [], 5, 0, seed=3)) for strategy in STRATEGIES if strategy != "volume"}
    assert len(first) == 1


def test_foreground_is_in_two_thirds_of_foreground_aware_slices(pool):
    shown = [pool.classes[choose("foreground", None, pool, [], 1, 0, seed)[0]].any() for seed in range(600)]
    assert 0.6 < sum(map(bool, shown)) / 600 < 0.73


def test_volumes_are_labelled_one_after_the_other(pool):
    chosen = choose("volume", None, pool, [], 20, 0, seed=0)
    assert len({int(pool.volumes[i]) for i in chosen[:10]}) == len({int(pool.volumes[i]) for i in chosen[10:]}) == 1


def test_differences_are_paired_by_seed():
    def run(dice):
        return [{"slices": 10, "clicks": 20, "dice": [dice]}]

    results = {"foreground_seed0": run(0.5), "foreground_seed1": run(0.7), "clasp_seed0": run(0.55)}
    results["clasp_seed1"] = run(0.73)
    table, rows = page(results, ["foreground", "clasp"], [0, 1])
    assert "| 10 | foreground | 0.600 ± 0.141 | – | 20 | 2 |" in table
    assert "| 10 | clasp | 0.640 ± 0.127 | +0.040 ± 0.010 | 20 | 2 |" in table
    assert isinstance(rows, pd.DataFrame) and len(rows) == 4


def test_the_mean_over_seeds_is_continued_to_each_later_number():
    def run(shift):
        curve = {10: 0.6, 20: 0.7, 40: 0.75, 80: 0.775}  # 0.8 - 2 / n
        return [{"slices": n, "clicks": 0, "dice": [dice + shift]} for n, dice in curve.items()]

    _, rows = page({"random_seed0": run(0.02), "random_seed1": run(-0.02)}, ["random"], [0, 1])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in forecasts(rows).splitlines()[2:]]
    assert [(line[1], line[2], line[4]) for line in lines] == [("10, 20", "40", "0.750"), ("10, 20, 40", "80", "0.775")]
    assert all(abs(float(line[5])) < 0.02 for line in lines)
    for line in lines:
        low, high = map(float, line[3].split(", ")[1].split(" to "))
        assert low < float(line[4]) < high


def test_the_command_plays_and_does_not_play_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    data = write_decathlon_phantoms(tmp_path / "data", cases=6, shape=(24, 32, 6))
    words = ["--strategies", "foreground", "clasp", "--seeds", "0", "--budgets", "4", "8", "--steps", "2"]
    words += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "docs"), "--all", "--override"]
    words += [f"dataset_dir={data}", "network_def#encoder=vit_test", "image_size=64", "weights=null", "test_patients=1"]
    words += ["val_patients=2", "num_slices=null"]
    slice_choice.main(words)
    text = (tmp_path / "docs" / "slice_choice_hippocampus.md").read_text()
    assert "Mean Dice of 2 validation patients" in text
    slices = re.search(r"(\d+) slices of 3 patients", text)[1]
    assert "| 8 | clasp |" in text and f"| {slices} | all |" in text
    assert (tmp_path / "docs" / "figures" / "slice_choice_hippocampus.png").is_file()
    results = json.loads((tmp_path / "work" / "hippocampus" / "results.json").read_text())
    assert [row["slices"] for row in results["clasp_seed0"]] == [4, 8]
    monkeypatch.setattr(slice_choice, "play", None)  # to play would fail
    slice_choice.main(words)
