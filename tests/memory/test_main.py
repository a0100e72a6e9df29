import json
from dataclasses import replace

import pytest
from monai.bundle import ConfigParser

from medsaga.memory.__main__ import main
from medsaga.memory.fit import available, candidates, parse_memory

from ..integration.bundles import ROOT

BUNDLE = str(ROOT / "bundles" / "hippocampus")
SMALL = ["--network_def#encoder", "vit_test", "--image_size", "64"]


def message(*words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*words])
    return str(caught.value)


def test_report_prints_a_table_and_draws_a_figure(tmp_path, capsys):
    main(["report", "--bundle", BUNDLE, "--batch", "2", "--output", str(tmp_path), *SMALL])
    printed = capsys.readouterr().out
    for expected in ("hippocampus, measured", "hippocampus, predicted", "optimizer state", "1.000"):
        assert expected in printed
    assert (tmp_path / "memory_hippocampus.png").stat().st_size > 1000


def test_report_compares_methods_without_measuring(tmp_path, capsys):
    full = str(ROOT / "bundles" / "methods" / "full.json")
    words = ["report", "--bundle", BUNDLE, "--methods", full, "--output", str(tmp_path), "--predict-only", *SMALL]
    main(words)
    printed = capsys.readouterr().out
    assert "full, predicted" in printed and ", measured" not in printed


def test_fit_takes_the_fastest_that_fits_and_writes_an_overlay(tmp_path, capsys):
    file = tmp_path / "fit.json"
    words = ["fit", "--bundle", BUNDLE, "--gpu-memory", "1GB", "--batch", "4", "--output", str(file), *SMALL]
    main(words)
    settings = json.loads(file.read_text())
    assert settings == {"checkpointing": "off", "offload": False, "accumulation_steps": 1, "batch_size": 4}
    files = [f"{BUNDLE}/configs/train.json", str(file)]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    assert parser.get_parsed_content("checkpointing") == "off"
    printed = capsys.readouterr().out
    assert str(files).replace(", ", ",") in printed and "--image_size '64'" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["fit.json"]


def test_fit_names_the_smallest_peak_where_nothing_fits(tmp_path, monkeypatch):
    sizes = iter([500_000_000, 300_000_000, *[400_000_000] * 34])
    monkeypatch.setattr("medsaga.memory.fit.predict", lambda setup, device: {"activations": next(sizes)})
    said = message("fit", "--bundle", BUNDLE, "--gpu-memory", "800MB", "--output", str(tmp_path / "x.json"))
    assert "does not fit 800MB: the smallest peak is 300 MB of 160 MB" in said
    assert next(sizes, None) is None  # all were tried: divisors of 4, checkpointing, offload, bits
    assert not list(tmp_path.iterdir())


def test_candidates_keep_the_batch_of_a_step(small):
    found = candidates(small(batch_size=6))
    assert {c.settings["batch_size"] * c.settings["accumulation_steps"] for c in found} == {6}
    assert len(found) == 4 * 3 * 2 * 2
    assert found[0].settings["accumulation_steps"] == 1 and found[0].time == 1
    assert [(c.changes, c.time) for c in found] == sorted((c.changes, c.time) for c in found)
    exact = [c for c in found if c.changes == 0]
    assert len(exact) == 3 * 2 and all(c.settings["batch_size"] == 6 and "state_bits" not in c.settings for c in exact)
    assert found[-1].settings["precision"] == "bf16_weights" and found[-1].settings["state_bits"] == 8


def test_only_an_optimizer_that_rounds_stochastically_is_given_weights_of_fewer_bits(small):
    full = small(batch_size=2)
    full = replace(full, overlays=("bundles/methods/full.json",))
    assert all("precision" not in candidate.settings for candidate in candidates(full))


@pytest.mark.parametrize("text, size", [("8GB", 8e9), ("8GiB", 8 * 2**30), ("8000MB", 8e9), ("7.5 gb", 7.5e9)])
def test_sizes(text, size):
    assert parse_memory(text) == size
    assert available(size) == pytest.approx(0.95 * size - 0.6e9)


def test_errors_name_what_is_wrong(tmp_path):
    assert "bundles/liver/configs/train.json" in message("report", "--bundle", "bundles/liver")
    assert "'image_sise'" in message("report", "--bundle", BUNDLE, "--image_sise", "64")
    assert "encoder='vit_x'" in message(
        "report", "--bundle", BUNDLE, "--predict-only", "--network_def#encoder", "vit_x"
    )
    assert "8 apples" in message("fit", "--bundle", BUNDLE, "--gpu-memory", "8 apples")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert "broken.json" in message("report", "--bundle", BUNDLE, "--methods", str(broken))
