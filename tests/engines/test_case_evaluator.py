from __future__ import annotations

import csv
import errno

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.handlers import MeanDice, StatsHandler, from_engine
from monai.transforms import Compose, EnsureChannelFirstd, Lambdad, LoadImaged

from medsaga.data import Cases
from medsaga.engines import CaseEvaluator
from medsaga.failures import CasesFailedError
from medsaga.handlers import MetricsTable, OverlayPictures, Progress


@pytest.fixture
def data(tmp_path):
    """Five cases by what happens to them: 'text' is no image, the network and the saving refuse two others."""
    cases = []
    for value, name in enumerate(("first", "text", "heavy", "unsaved", "last")):
        case = {key: str(tmp_path / f"{name}_{key}.nii.gz") for key in ("image", "label")}
        label = np.zeros((6, 5, 2), np.uint8)
        label[: 2 + value % 2] = 1
        nib.save(nib.Nifti1Image(label + np.float32(value), np.eye(4)), case["image"])
        nib.save(nib.Nifti1Image(label, np.eye(4)), case["label"])
        cases.append(case)
    (tmp_path / "text_image.nii.gz").write_text("no image")
    return cases


class Network(torch.nn.Module):
    """Right everywhere; of images of which all values are 2 or more it says that they need too much memory."""

    def forward(self, image):
        if image.min() == 2:
            raise torch.OutOfMemoryError("out of memory")
        return (image - image.amin()).long()


def save(pred, error):
    if pred.meta["filename_or_obj"].endswith("unsaved_image.nii.gz"):
        raise error
    return pred


def evaluator(data, folder, error=None, **options):
    keys = ["image", "label"]
    dataset = Cases(data, Compose([LoadImaged(keys), EnsureChannelFirstd(keys)]))
    return CaseEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=options.pop("batch_size", 1)),
        network=Network(),
        postprocessing=Compose([Lambdad("pred", lambda pred: save(pred, error or ValueError("no such format")))]),
        key_val_metric={"dice": MeanDice(num_classes=2, output_transform=from_engine(["pred", "label"]))},
        errors=folder / "out" / "errors.csv",
        val_handlers=[
            Progress(),
            StatsHandler(iteration_log=False),
            MetricsTable(folder / "out", ["background", "object"]),
            OverlayPictures(folder / "out", ["background", "object"]),
        ],
        **options,
    )


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_all_good_cases_are_done_and_the_others_listed(data, tmp_path, capsys):
    engine = evaluator(data, tmp_path)
    ended = []
    engine.add_event_handler(Events.COMPLETED, lambda _: ended.append(True))
    with pytest.raises(CasesFailedError) as caught:
        engine.run()
    errors = tmp_path / "out" / "errors.csv"
    assert str(caught.value).splitlines()[0] == f"3 of 5 cases failed, listed in {errors}:"
    listed = rows(errors)
    assert [row["file"] for row in listed] == [data[i]["image"] for i in (1, 2, 3)]
    assert str(caught.value).splitlines()[1:] == [f"{row['file']}: {row['cause']}" for row in listed]
    assert all("\n" not in row["cause"] and row["cause"] for row in listed)
    assert "out of memory" in listed[1]["cause"]
    assert "no such format" in listed[2]["cause"]
    # the good ones: scored, drawn, and the run's end was reached
    assert [row["case"] for row in rows(tmp_path / "out" / "metrics.csv")] == ["first_image", "last_image"]
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.png")) == ["first_image", "last_image"]
    assert engine.state.metrics["dice"] == 1
    assert ended
    assert "5/5" in capsys.readouterr().err.split("\r")[-1]  # failed ones are over as well


def test_a_run_without_failures_leaves_no_list(data, tmp_path):
    good = [data[0], data[4]]
    errors = tmp_path / "out" / "errors.csv"
    errors.parent.mkdir()
    errors.write_text("file,cause\nof an earlier run,\n")
    evaluator(good, tmp_path).run()
    assert not errors.exists()


def test_the_same_evaluator_may_run_again(data, tmp_path):
    engine = evaluator(data, tmp_path)
    for _ in range(2):
        with pytest.raises(CasesFailedError, match="3 of 5 cases failed"):
            engine.run()
        assert len(rows(tmp_path / "out" / "metrics.csv")) == 2


def test_all_cases_fail(data, tmp_path):
    engine = evaluator(data[1:4], tmp_path)
    for _ in range(2):
        with pytest.raises(CasesFailedError, match="3 of 3 cases failed"):
            engine.run()
    assert len(rows(tmp_path / "out" / "errors.csv")) == 3
    assert rows(tmp_path / "out" / "metrics.csv") == []


def test_a_bad_label_is_named_by_its_own_file(data, tmp_path):
    (tmp_path / "last_label.nii.gz").write_text("no label")
    with pytest.raises(CasesFailedError):
        evaluator([data[0], data[4]], tmp_path).run()
    assert [row["file"] for row in rows(tmp_path / "out" / "errors.csv")] == [data[4]["label"]]


def test_ten_are_shown_and_all_are_in_the_file(data, tmp_path):
    with pytest.raises(CasesFailedError) as caught:
        evaluator([data[0], *[data[1]] * 13], tmp_path).run()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 10 + 1
    assert lines[-1] == "... and 3 more"
    assert len(rows(tmp_path / "out" / "errors.csv")) == 13


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"]
)
def test_what_would_end_all_cases_ends_the_run_and_what_failed_before_is_listed(data, tmp_path, error):
    engine = evaluator(data, tmp_path, error)
    # MONAI wraps the error of a transform
    with pytest.raises((RuntimeError, KeyboardInterrupt), match="applying transform|^$"):
        engine.run()
    assert engine.state.iteration == 4
    assert len(rows(tmp_path / "out" / "errors.csv")) == 2


def test_larger_batches_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="batch_size=2; it must be 1"):
        evaluator(data, tmp_path, batch_size=2)
