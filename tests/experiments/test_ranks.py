import json
import sys
import time

import monai.bundle
import pytest
import torch
from fire.parser import DefaultParseValue

from medsaga.data import write_decathlon_phantoms
from medsaga.experiments import bundle_run, ranks

from ..integration.bundles import ROOT

SMALL = [
    "network_def#encoder=vit_test",
    "image_size=64",
    "weights=$None",
    "test_patients=2",
    "val_patients=1",
    "train_patients=2",
    "num_slices=4",
    "val_interval=1",
    "warmup_steps=1",
]


def call_in_this_process(words, log):
    """``bundle_run.run_logged`` without the seconds that a new process takes to import everything."""
    assert words[1:6] == ["-W", "ignore", "-m", "monai.bundle", "run"]
    hook = sys.excepthook
    options = {key.removeprefix("--"): DefaultParseValue(value) for key, value in zip(words[7::2], words[8::2])}
    monai.bundle.run(words[6], **options)
    sys.excepthook = hook  # a bundle's initialize sets one for its process
    return 1.0, 2**30


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """GaLore and LoRA at one rank and full AdamW on phantoms: the arguments and the folder."""
    folder = tmp_path_factory.mktemp("ranks")
    data = write_decathlon_phantoms(folder / "data", cases=6, shape=(24, 32, 8))
    words = ["--dataset_dir", str(data), "--epochs", "1", "--ranks", "4", "--override", *SMALL]
    words += ["--work", str(folder / "work"), "--output", str(folder / "docs")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(bundle_run, "run_logged", call_in_this_process)
        ranks.main(words)
    return words, folder


def test_table_and_plot_of_every_method(done):
    _, folder = done
    text = (folder / "docs" / "ranks_hippocampus.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[:2] for row in rows[2:]] == [["GaLore", "4"], ["LoRA", "4"], ["full AdamW", "–"]]
    for row in rows[2:]:
        assert 0 <= float(row[2].split(" ± ")[0]) <= 1
        assert row[4] == "2"
        assert row[6] == "1.00"
    assert "4 slices of 2 patients, 2 test patients, seed 0" in text
    assert (folder / "docs" / "figures" / "ranks_hippocampus.png").stat().st_size > 1000


def test_each_run_had_its_method_and_the_same_schedule(done):
    _, folder = done
    states = {
        path.name: torch.load(path / "output" / "last.pt", weights_only=True)
        for path in (folder / "work" / "hippocampus").glob("*_seed0")
    }
    assert set(states) == {"galore_rank4_seed0", "lora_rank4_seed0", "full_seed0"}
    lora = [value for key, value in states["lora_rank4_seed0"]["network"].items() if key.endswith("lora_a_q")]
    assert [len(value) for value in lora] == [4, 4]
    groups = {name: state["optimizer"]["param_groups"] for name, state in states.items()}
    assert [group.get("rank") for group in groups["galore_rank4_seed0"]] == [4, None, None]
    assert all("rank" not in group for group in groups["full_seed0"])
    assert {state["progress"]["iteration"] for state in states.values()} == {1}


def test_what_is_done_is_not_run_again(done, monkeypatch):
    words, _ = done
    monkeypatch.chdir(ROOT)
    start = time.monotonic()
    ranks.main(words)
    assert time.monotonic() - start < 3  # less than one process takes to start


def test_another_schedule_does_not_pass_for_this_one(done, monkeypatch):
    words, _ = done
    monkeypatch.chdir(ROOT)
    with pytest.raises(RuntimeError, match=r"galore_rank4_seed0.*--work"):
        ranks.main([*words, "--epochs", "2"])


def test_seeds_are_pooled(tmp_path):
    for seed, dice in ((0, (0.5, 0.7)), (1, (0.9, "nan"))):
        folder = tmp_path / f"galore_rank4_seed{seed}"
        (folder / "output" / "evaluation").mkdir(parents=True)
        lines = ["case,class,dice,hd95"] + [f"a,{c},{value},nan" for c, value in zip("xy", dice)]
        (folder / "output" / "evaluation" / "metrics.csv").write_text("\n".join(lines))
        content = {"minutes": 2.0 + seed, "resumed": bool(seed), "peak_rss": 2**30}
        (folder / "run.json").write_text(json.dumps(content))
    found = ranks.results(ranks.plan([4, 8], [0, 1]), tmp_path)
    assert list(found) == [("GaLore", 4)]
    assert ranks.table(found).splitlines()[-1] == "| GaLore | 4 | 0.750 ± 0.150 | – | 2 | ≥ 2.5 | 1.00 |"


def test_a_run_in_processes_of_its_own(done, tmp_path, monkeypatch):
    _, folder = done
    monkeypatch.chdir(ROOT)
    options = json.loads((folder / "work" / "hippocampus" / "full_seed0" / "options.json").read_text())
    run = ranks.Run("LoRA", 2, 0)
    del options["seed"]
    ranks.perform(run, ROOT / "bundles" / "hippocampus", tmp_path, options)
    result = ranks.results([run], tmp_path)["LoRA", 2]
    assert len(result.dice) == 2 and not result.resumed
    assert result.peak_rss > 100e6
    assert 0 < result.minutes[0] < 10


def test_a_failed_command_shows_its_log(tmp_path):
    script = "print('why it failed'); raise SystemExit(3)"
    with pytest.raises(RuntimeError, match="(?s)why it failed.*log.txt"):
        bundle_run.run_logged([sys.executable, "-c", script], tmp_path / "log.txt")


def test_an_override_without_value_is_refused(capsys):
    with pytest.raises(SystemExit):
        ranks.main(["--dataset_dir", "x", "--epochs", "1", "--override", "image_size"])
    assert "KEY=VALUE" in capsys.readouterr().err
