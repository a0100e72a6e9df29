"""Methods compared by how many images they learn from, on phantoms."""

import csv
import json
import multiprocessing
import os
import sys
import time

import monai.bundle
import pandas as pd
import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from medsaga.data import write_decathlon_phantoms
from medsaga.experiments import bundle_run
from medsaga.experiments.few_shot import cluster, read_experiment
from medsaga.experiments.few_shot.__main__ import main
from medsaga.experiments.few_shot.execution import work_off
from medsaga.experiments.few_shot.results import by_case, collect, seeds_table, table

from .. import forks
from ..integration.bundles import ROOT

SMALL = {
    "network_def#encoder": "vit_test",
    "image_size": 64,
    "weights": "$None",
    "test_patients": 3,
    "val_patients": 1,
    "train_patients": "$None",
    "val_interval": 1,
    "warmup_steps": 1,
    "train#trainer#max_epochs": 1,
}


def write_experiment(folder, **changes):
    content = {
        "title": "Phantoms",
        "note": "They are generated.",
        "methods": {
            "MedSAGa": {},
            "SAMed": {"overlays": ["samed.json"]},
            "Full AdamW": {"overlays": ["full.json"], "options": {"encoder_lr": 0.001}},
        },
        "options": SMALL,
        "grids": [
            {"bundle": "hippocampus", "num_images": [4, 8], "seeds": [0]},
            {"bundle": "hippocampus", "num_images": [4], "seeds": [1], "methods": ["MedSAGa"]},
        ],
        "loss_curves": ["MedSAGa", "SAMed"],
        "pictures": ["MedSAGa", "SAMed"],
        **changes,
    }
    path = folder / "phantoms.json"
    path.write_text(json.dumps(content))
    return path


def call_in_this_process(words, log):
    """``bundle_run.run_logged`` without the seconds that a new process takes to import everything."""
    hook = sys.excepthook
    options = {key.removeprefix("--"): DefaultParseValue(value) for key, value in zip(words[7::2], words[8::2])}
    monai.bundle.run(words[6], **options)
    sys.excepthook = hook  # a bundle's initialize sets one for its process
    return 60.0, 2**30


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few_shot")
    write_decathlon_phantoms(folder / "data" / "Task04_Hippocampus", cases=7, shape=(24, 32, 8))
    path = write_experiment(folder)
    words = [str(path), "--work", str(folder / "work"), "--output", str(folder / "docs")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("MEDSAGA_DATA", str(folder / "data"))
        patch.setattr(bundle_run, "run_logged", call_in_this_process)
        main(words)
    return words, folder


def test_the_page_has_table_1_and_the_csv_its_values(done):
    _, folder = done
    text = (folder / "docs" / "phantoms.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["Data, N images", "MedSAGa", "SAMed", "Full AdamW"]
    assert [row[0] for row in rows[2:4]] == ["hippocampus 4", "hippocampus 8"]
    with open(folder / "docs" / "phantoms.csv") as file:
        values = list(csv.DictReader(file))
    assert len(values) == 7 * 3 * 2, "runs, test cases, classes"
    own = [float(v["dice"]) for v in values if v["method"] == "SAMed" and v["num_images"] == "8"]
    assert rows[3][2].strip("*").startswith(f"{sum(own) / len(own):.3f} ± ")
    assert "3 of hippocampus. Seeds: 0, 1" in text
    assert "\nThey are generated.\n" in text


def test_its_pictures_are_there(done):
    _, folder = done
    text = (folder / "docs" / "phantoms.md").read_text()
    for name in ("phantoms_dice.png", "phantoms_losses.png"):
        assert f"figures/{name}" in text
        assert (folder / "docs" / "figures" / name).stat().st_size > 5000
    assert "`cases_hippocampus.png`" in text
    assert (folder / "work" / "phantoms" / "cases_hippocampus.png").stat().st_size > 5000


def test_each_run_has_its_images_and_its_options(done):
    _, folder = done
    options = {
        path.parent.name: json.loads(path.read_text()) for path in (folder / "work" / "phantoms").rglob("options.json")
    }
    assert len(options) == 7
    assert options["full_adamw_n8_seed0"]["encoder_lr"] == 0.001
    assert options["full_adamw_n8_seed0"]["num_slices"] == 8
    assert options["medsaga_n4_seed1"]["seed"] == 1
    assert options["samed_n4_seed0"]["overlays"] == ["samed.json"]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "bundles" / "methods" / "experiments").glob("*.json")), ids=lambda p: p.stem
)
def test_methods_are_compared_without_prompts(file):
    """Or those that train with prompts would have half of the batches of those that do not."""
    for run in read_experiment(file).runs:
        files = [ROOT / "bundles" / run.bundle / "configs" / "train.json", *run.overlays]
        config = ConfigParser(ConfigParser.load_config_files([str(path) for path in files]))
        assert run.options.get("prompt_probability", config["prompt_probability"]) == 0, run.name


def test_what_is_done_is_not_run_again(done, monkeypatch):
    words, folder = done

    called = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MEDSAGA_DATA", str(folder / "data"))
    monkeypatch.setattr(bundle_run, "run_logged", lambda words, log: called.append(words))
    main(words)
    assert called == []


def job_in_one_process(experiment, work, job=cluster._work):
    bundle_run.run_logged = call_in_this_process
    job(experiment, work)


def fork_job(folder, **_):
    """submitit's ``start_controller``; its own starts two processes that import everything."""
    code = f"import os, runpy, sys; sys.argv.append({str(folder)!r}); os.environ['SUBMITIT_LOCAL_JOB_ID'] = "
    code += "str(os.getpid()); runpy.run_module('submitit.core._submit', run_name='__main__')"
    numbers = {"NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0", "GLOBALID": "0", "LOCALID": "0"}
    environment = {**os.environ, "SUBMITIT_EXECUTOR": "local"}
    environment |= {f"SUBMITIT_LOCAL_{name}": value for name, value in numbers.items()}
    return forks.start([sys.executable, "-c", code], folder / "log.txt", ROOT, environment)


def test_jobs_of_a_launcher_share_what_is_missing(done, tmp_path, monkeypatch):
    """By submitit's launcher for local processes, in the place of SLURM's."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'medsaga[cluster]'")
    words, folder = done
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MEDSAGA_DATA", str(folder / "data"))
    work = folder / "work" / "phantoms"
    missing = work / "hippocampus" / "medsaga_n4_seed1" / "run.json"
    missing.unlink()
    monkeypatch.setattr(cluster, "_work", job_in_one_process)
    monkeypatch.setattr("submitit.local.local.start_controller", fork_job)
    for job in cluster.submit(read_experiment(words[0]), work, jobs=2, options={"timeout_min": "10"}, cluster="local"):
        job.result()
    assert json.loads(missing.read_text())["resumed"]
    assert len(list((work / "jobs").glob("*_result.pkl"))) == 2


def test_a_run_that_fails_leaves_the_others_and_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = read_experiment(write_experiment(tmp_path))

    def fail_one(folder, bundle, overlays, options, cache, evaluation):
        if overlays and overlays[0].name == "samed.json":
            raise RuntimeError("the disk is full")

    monkeypatch.setattr("medsaga.experiments.few_shot.execution.execute", fail_one)
    shown = []
    failed = work_off(experiment.runs, tmp_path / "work", shown.append)
    assert {run.method for run in failed} == {"SAMed"} and set(failed.values()) == {"the disk is full"}
    assert len(shown) == 5 and not set(shown) & set(failed)


def _one_of_two(path, work, log):
    def slow(folder, *_):
        if not (folder / "run.json").is_file():
            time.sleep(0.05)
            with open(log, "a") as file:
                file.write(f"{folder.name}\n")
            (folder / "run.json").write_text("{}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medsaga.experiments.few_shot.execution.execute", slow)
        patch.setattr("medsaga.experiments.few_shot.execution._LOOK_SECONDS", 0.02)
        work_off(read_experiment(path).runs, work, lambda run: None)


def test_two_processes_share_an_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = write_experiment(tmp_path)
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_one_of_two, args=(path, tmp_path / "work", tmp_path / "log.txt")) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    names = (tmp_path / "log.txt").read_text().split()
    assert len(names) == len(set(names)) == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grids": [{"bundle": "hippocampus", "num_images": [4]}]}, "lacks seeds"),
        ({"grids": [{"bundle": "hippocampus", "num_images": [4], "seeds": [0], "epochs": 3}]}, "unknown keys epochs"),
        ({"grids": [{"bundle": "hippocampus", "num_images": [4], "seeds": [0], "methods": ["X"]}]}, "no method X"),
        ({"pictures": ["Y"]}, "pictures: there is no method Y"),
        ({"picture": ["MedSAGa"]}, "unknown keys picture"),
    ],
)
def test_what_is_wrong_with_an_experiment_is_said(tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=words):
        read_experiment(write_experiment(tmp_path, **changes))


def test_an_overlay_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=r"methods\['X'\].*nothing.json"):
        read_experiment(
            write_experiment(
                tmp_path,
                methods={"X": {"overlays": ["nothing.json"]}},
                grids=[{"bundle": "hippocampus", "num_images": [4], "seeds": [0]}],
                loss_curves=[],
                pictures=[],
            )
        )


def test_tables_leave_out_what_has_no_value():
    nan = float("nan")
    rows = pd.DataFrame(
        [
            ("d", 5, "A", 0, "one", "x", 0.8, 2.0),
            ("d", 5, "A", 0, "one", "y", nan, nan),
            ("d", 5, "A", 0, "two", "x", 0.6, nan),
            ("d", 5, "A", 0, "two", "y", 0.4, nan),
            ("d", 5, "A", 1, "one", "x", 0.9, 4.0),
            ("d", 5, "B", 0, "one", "x", 0.1, nan),
        ],
        columns=["bundle", "num_images", "method", "seed", "case", "class", "dice", "hd95"],
    )
    assert by_case(rows)["dice"].tolist() == pytest.approx([0.8, 0.5, 0.9, 0.1])
    assert table(rows, ["A", "B", "C"]).splitlines() == [
        "| Data, N images | A | B |",
        "|---|---|---|",
        "| d 5 | **0.733 ± 0.170** / 3.0 ± 1.0 | 0.100 ± 0.000 / – |",
    ]
    assert seeds_table(rows, ["A", "B"]).splitlines()[2:] == ["| d 5 | A | 0.650, 0.900 | 0.775 ± 0.177 |"]


def test_nothing_done_gives_no_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert collect(read_experiment(write_experiment(tmp_path)).runs, tmp_path).empty
