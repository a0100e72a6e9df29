import json
import os
import sys

import pytest
import torch

from medsaga.experiments import memory
from medsaga.experiments.memory import ROWS, explicit_attention, galore_torch_adamw, run_row, table
from medsaga.networks import SamSegmenter
from medsaga.optimizers import sam_param_groups

from ..integration.bundles import ROOT

BUNDLE = str(ROOT / "bundles" / "spleen")
SMALL = {"network_def#encoder": "vit_test", "image_size": 64, "batch_size": 2, "device": "$torch.device('cpu')"}
WORDS = ["--encoder", "vit_test", "--image_size", "64", "--batch", "2", "--device", "cpu"]


@pytest.fixture(scope="module", params=ROWS)
def row(request):
    if request.param == "galore_torch":
        pytest.importorskip("galore_torch")
    return request.param, run_row(request.param, BUNDLE, SMALL)


def trained_bytes(lora=None):
    network = SamSegmenter("vit_test", 64, num_classes=2, lora=lora)
    return sum(p.nbytes for p in network.parameters() if p.requires_grad)


def test_every_row_is_measured(row):
    _, result = row
    assert set(result) == {"split", "process", "seconds"}
    assert result["seconds"] > 0
    assert all(result["split"][category] > 0 for category in ("weights", "activations"))


def test_states_are_those_of_the_method(row):
    name, result = row
    state = result["split"]["optimizer state"]
    decoder = trained_bytes(lora={"rank": 4})
    if name == "adamw":  # two moments of all that is trained, and counters
        assert state == pytest.approx(2 * trained_bytes(), rel=1e-3)
    elif name.startswith("samed"):
        assert state == pytest.approx(2 * decoder, rel=1e-3)
    elif name == "leanest":
        assert state < decoder
    else:
        assert 1.9 * decoder < state < 2 * trained_bytes()


@pytest.mark.parametrize("name", ["samed", "galore_torch"])
def test_a_prediction_is_the_accounting(name):
    """Also with attention and optimizer exchanged."""
    if name == "galore_torch":
        pytest.importorskip("galore_torch")
    measured, predicted = run_row(name, BUNDLE, SMALL), run_row(name, BUNDLE, SMALL, predicted=True)
    assert predicted["seconds"] is predicted["process"] is None
    assert sum(predicted["split"].values()) == pytest.approx(sum(measured["split"].values()), rel=0.05)


def softmaxes(network) -> int:
    """Softmaxes of explicit scores in a forward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        network(torch.rand(1, 1, 64, 64))
    return sum(event.count for event in profile.key_averages() if event.key == "aten::softmax")


def test_explicit_attention_is_back_for_a_while():
    network = SamSegmenter("vit_test", 64, lora={"rank": 4}).eval()
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        lean = network(image)
        with explicit_attention():
            torch.testing.assert_close(network(image), lean, rtol=1e-4, atol=1e-5)
            assert softmaxes(network) == 2 + 7  # blocks of the encoder; attentions of the decoder
        assert softmaxes(network) == 0
        with explicit_attention(False):
            assert softmaxes(network) == 0


def test_galore_torch_projects_what_we_do_but_convolutions():
    pytest.importorskip("galore_torch")
    network = SamSegmenter("vit_test", 64)
    groups = sam_param_groups(network, rank=4)
    optimizer = galore_torch_adamw(groups)
    ours = {id(p) for g in groups if "rank" in g for p in g["params"]}
    theirs = {id(p): p for g in optimizer.param_groups if "rank" in g for p in g["params"]}
    assert set(theirs) < ours
    assert all(p.ndim == 2 for p in theirs.values())
    assert sum(len(g["params"]) for g in groups) == sum(len(g["params"]) for g in optimizer.param_groups)
    assert [g["rank"] for g in optimizer.param_groups if "rank" in g] == [4]


# --- command ---------------------------------------------------------------------------------------------------------


def test_rows_done_are_kept(tmp_path, monkeypatch):
    """One row in a process of its own, another later, and predictions beside them."""
    monkeypatch.chdir(ROOT)
    words = [*WORDS, "--output", str(tmp_path)]
    memory.main([*words, "--only", "samed"])
    monkeypatch.setattr(memory, "_in_new_process", run_row)
    memory.main([*words, "--only", "samed_lean"])
    memory.main([*words, "--only", "samed", "--predict"])
    sections = json.loads((tmp_path / "memory_benchmark.json").read_text())
    assert {setting: set(rows) for setting, rows in sections.items()} == {
        "vit_test, 64 px, batch 2, cpu, measured": {"samed", "samed_lean"},
        "vit_test, 64 px, batch 2, cpu, predicted": {"samed"},
    }
    text = (tmp_path / "memory_benchmark.md").read_text()
    assert text.count("\n| (b)") == 2 and text.count("\n| (c)") == 1
    assert "--only samed_lean" in text
    assert (tmp_path / "figures" / "memory_benchmark.png").stat().st_size > 1000


def test_ratios():
    def row(peak, process, seconds):
        split = dict.fromkeys(memory.CATEGORIES, 0) | {"weights": peak}
        return {"split": split, "process": process, "seconds": seconds, "batch": 12}

    rows = {"samed": row(4e9, 5e9, 3.0), "default": row(1e9, 2e9, 6.0), "adamw": row(8e9, None, 4.0)}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows).splitlines()]
    assert [line[0][:3] for line in lines[2:]] == ["Med", "(a)", "(b)"]
    cells = dict(zip(lines[0], lines[2]))
    assert (cells["peak MB"], cells["peak / (b)"], cells["peak / (c)"]) == ("1,000", "0.25", "–")
    assert (cells["process / (b)"], cells["images a s"], cells["time / (a)"]) == ("0.40", "2.00", "1.50")
    assert dict(zip(lines[0], lines[3]))["process MB"] == "–"


def test_a_killed_process_is_explained(monkeypatch):
    monkeypatch.setattr(memory, "run_row", os._exit)
    with pytest.raises(RuntimeError, match="row 9 was killed.*--predict"):
        memory._in_new_process(9)


def test_without_galore_torch_it_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "galore_torch", None)
    with pytest.raises(RuntimeError, match=r"pip install galore-torch==1.0.*--only"):
        memory.main([*WORDS, "--output", str(tmp_path)])
