import sys

import pytest
import torch

from medsaga.experiments import optimizer_step
from medsaga.experiments.optimizer_step import OPTIMIZERS, encoder_matrices, main, measure_steps, state_bytes
from medsaga.networks import build_encoder


def test_the_matrices_are_those_of_vit_b():
    with torch.device("meta"):
        blocks = build_encoder("vit_b", 512).blocks
    shapes = [tuple(p.shape) for n, p in blocks.named_parameters() if p.ndim == 2 and "rel_pos" not in n]
    assert shapes == encoder_matrices()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_measured(name):
    if name == "galore_torch":
        pytest.importorskip("galore_torch")
    row = measure_steps(name, encoder_matrices(width=32, depth=1), rank=2, update_gap=5)
    assert 0 < row["mean"] <= row["longest"]
    assert 0 < row["median"] <= row["longest"]
    if name.startswith("AdamW"):  # two moments of 12 width² float32, and a step for each matrix
        assert row["bytes"] == 2 * 4 * 12 * 32**2 + 4 * 4
    elif not name.endswith("8 bits"):
        moments = 2 * 4 * 2 * (96 + 32 + 128 + 128)
        basis = 4 * 2 * 4 * 32
        assert moments + basis <= row["bytes"] <= moments + basis + 4 * 8  # and counters


def test_state_in_8_bits_is_a_byte_an_element_and_its_scales():
    shapes = [(512, 128)]
    wide, narrow = (measure_steps(f"GaLoreAdamW{bits}", shapes, rank=8, update_gap=2) for bits in ("", ", 8 bits"))
    elements = 2 * 512 * 8
    saved = wide["bytes"] - narrow["bytes"]
    assert saved == pytest.approx(elements * (4 - 1 - 4 / 256), abs=2 * 256 * 4)  # each has a table of its 256 values


def test_amortised_over_the_refreshes(monkeypatch):
    """galore_torch refreshes in one step of update_gap, here of 10 s where others take 1 s."""
    pytest.importorskip("galore_torch")
    monkeypatch.setattr(optimizer_step, "_timed", lambda step, count, device: [step() or 10.0] + [1.0] * (count - 1))
    row = measure_steps("galore_torch", [(8, 8)], rank=2, update_gap=5)
    assert row["mean"] == pytest.approx((10 + 4) / 5)
    assert (row["median"], row["longest"]) == (1.0, 10.0)


def test_state_of_galore_torch_counts_its_projectors():
    galore_torch = pytest.importorskip("galore_torch")
    param = torch.nn.Parameter(torch.rand(8, 6))
    param.grad = torch.rand(8, 6)
    group = {"params": [param], "rank": 2, "update_proj_gap": 5, "scale": 1.0, "proj_type": "std"}
    optimizer = galore_torch.GaLoreAdamW([group], no_deprecation_warning=True)
    optimizer.step()
    assert state_bytes(optimizer) == 4 * (2 * 8 * 2 + 2 * 6)


def test_table_is_printed(capsys):
    words = ["--width", "16", "--depth", "1", "--rank", "2", "--update_gap", "3"]
    main([*words, "--only", "AdamW", "GaLoreAdamW", "--device", "cpu"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == ["| Optimizer", "| AdamW", "| GaLoreAdamW"]
    assert lines[1].endswith("| 1.000 |")


def test_without_galore_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "galore_torch", None)
    with pytest.raises(RuntimeError, match=r"pip install galore-torch==1.0.*--only"):
        measure_steps("galore_torch", [(8, 8)])
