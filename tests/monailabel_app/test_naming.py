"""What clients' values mean: one rule, tried over all orders and choices of segments."""

from itertools import combinations, permutations

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.labels.naming import known_segments, meaning, named_values
from lib.served_model import ServedModel

from ..integration.bundles import ROOT
from .phantoms import AFFINE, SHAPE, a_label, refused, save, stored


def slicer_export(scene):
    """What Slicer's onSaveLabel sends for a scene of (name, class or None): label map and label_info.

    ExportSegmentsToLabelmapNode numbers the segments it is given from 1 in their order; ``idx`` is the place in the
    whole scene, and background and scribbles are left out of both.
    """
    values, info = np.zeros(SHAPE, np.uint8), []
    for idx, (name, row) in enumerate(scene):
        if name in ("background", "foreground_scribbles", "background_scribbles"):
            continue
        info.append({"name": name, "idx": idx + 1})
        if row is not None:
            values[row, 2:5, 2:4] = len(info)
    return values, info


@pytest.mark.parametrize(
    "scene",
    [
        [("anterior", 1), ("posterior", 3)],
        [("posterior", 3), ("anterior", 1)],
        [("background", None), ("posterior", 3), ("anterior", 1)],
        [("foreground_scribbles", None), ("anterior", 1), ("background", None), ("Posterior ", 3)],
        [("Segment_1", None), ("posterior", 3), ("anterior", 1)],
    ],
)
def test_slicers_segments_become_the_models_classes(store, tmp_path, scene):
    values, info = slicer_export(scene)
    answer = save(store, tmp_path, values, label_info=info)
    np.testing.assert_array_equal(stored(store), a_label(1, 2))
    np.testing.assert_allclose(nib.load(store.get_label_uri("case", "final")).affine, AFFINE)
    assert answer["voxels"] == {"anterior": 6, "posterior": 6}


def test_one_segment_alone_after_a_background(store, tmp_path):
    values, info = slicer_export([("background", None), ("posterior", 3)])
    assert info == [{"name": "posterior", "idx": 2}] and values.max() == 1
    save(store, tmp_path, values, label_info=info)
    assert stored(store).max() == 2


def test_values_beyond_the_segments_go_by_idx(store, tmp_path):
    save(store, tmp_path, a_label(5, 7), label_info=[{"name": "anterior", "idx": 7}, {"name": "posterior", "idx": 5}])
    np.testing.assert_array_equal(stored(store), a_label(2, 1))


def test_segments_that_no_model_knows_are_refused_by_name(store, tmp_path):
    values, info = slicer_export([("anterior", 1), ("Segment_1", 3)])
    detail = refused(422, lambda: save(store, tmp_path, values, label_info=info))
    assert "'Segment_1'" in detail
    assert "hippocampus has 0 background, 1 anterior, 2 posterior" in detail
    refused(422, lambda: save(store, tmp_path, a_label(1, 3), label_info=info))  # a value without a name


def test_ohif_sends_raw_bytes_with_the_first_axis_fastest(store, tmp_path):
    path = tmp_path / "label.bin"
    segments = [{"name": "posterior", "segmentIndex": 1, "id": "0+1"}, {"name": "anterior", "segmentIndex": 3}]
    path.write_bytes(a_label(3, 1).tobytes(order="F"))
    store.save_label("case", str(path), "final", {"label_info": segments})
    np.testing.assert_array_equal(stored(store), a_label(1, 2))
    assert store.get_label_uri("case", "final").endswith("case.nii.gz")
    path.write_bytes(b"\1" * 479)
    assert "479 bytes" in refused(422, store.save_label, "case", str(path), "final", {})


# --- the rule, over all orders --------------------------------------------------------------------------------------

NAMES = ("anterior", "posterior", "spleen", "liver")


def parts(names):
    """All choices of at least one."""
    return [c for size in range(1, len(names) + 1) for c in combinations(names, size)]


@pytest.mark.parametrize("order", permutations(NAMES), ids="-".join)
def test_each_dialect_names_what_its_client_drew(order):
    for listed in parts(order):
        for drawn in parts(listed):
            # OHIF: any value is a segment's own
            for values in ([7, 3, 9, 1], [1, 2, 3, 4], [4, 3, 2, 1]):
                truth = dict(zip(values, listed))
                info = [{"name": name, "segmentIndex": value} for value, name in truth.items()]
                present = sorted(value for value, name in truth.items() if name in drawn)
                assert {v: named_values(present, {"label_info": info}, "x")[v] for v in present} == {
                    v: truth[v] for v in present
                }
            # Slicer: values by order, idx with gaps of segments that it leaves out
            truth = dict(enumerate(listed, start=1))
            present = sorted(value for value, name in truth.items() if name in drawn)
            for gaps in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 2, 2, 5]):
                info = [{"name": name, "idx": value + gap} for (value, name), gap in zip(truth.items(), gaps)]
                assert named_values(present, {"label_info": info}, "x") == truth
            # no number at all: the order
            assert named_values(present, {"label_info": [{"name": name} for name in listed]}, "x") == truth
            # idx that does not rise is the value
            values = [4, 3, 2, 1][: len(listed)]
            truth = dict(zip(values, listed))
            present = sorted(value for value, name in truth.items() if name in drawn)
            info = [{"name": name, "idx": value} for value, name in truth.items()]
            if len(listed) > 1 or present[0] > 1:
                assert named_values(present, {"label_info": info}, "x") == truth
            # MONAI Label's models
            names = {"params": {"label_names": {name: value for value, name in truth.items()}}}
            assert named_values(present, names, "x") == truth


def test_the_label_info_of_the_issue_means_one_thing():
    info = {"label_info": [{"name": "posterior", "idx": 2}, {"name": "anterior", "idx": 1}]}
    assert named_values([1, 2], info, "x") == {1: "anterior", 2: "posterior"}
    zero = [{"name": "background", "idx": 0}, {"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]
    assert named_values([1, 2], {"label_info": zero}, "x")[1] == "anterior", "Slicer counts from 1"


@pytest.mark.parametrize(
    "info, message",
    [
        ({"label_info": "anterior"}, "label_info: "),
        ({"label_info": ["anterior"]}, "label_info.0: "),
        ({"label_info": [{"name": ["a"]}]}, "label_info.0.name: "),
        ({"label_info": [{"name": "a", "idx": "first"}]}, "label_info.0.idx: "),
        ({"label_info": [{"name": "a", "segmentIndex": 0.5}]}, "label_info.0.segmentIndex: "),
        ({"label_info": [{"name": "a", "idx": 3}, {"name": "b", "idx": 3}]}, "several segments the same value"),
        ({"params": {"label_names": {"a": "x"}}}, "params.label_names.a: "),
        ({"params": [1]}, "params: "),
        ({"model": ["a"]}, "model: "),
        ({"label_info": [{"name": "a", "segmentIndex": 3}]}, "its values [1] have no name"),
    ],
)
def test_names_of_another_form_are_refused_by_field(info, message):
    assert message in refused(422, named_values, [1], info, "label")


# --- several models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def abdomen():
    """hippocampus 1 anterior, 2 posterior; spleen 1 spleen; amos 1 spleen, 2 right kidney and others."""
    return {name: ServedModel(ROOT / "bundles" / name) for name in ("hippocampus", "spleen", "amos")}


def test_names_choose_the_models(abdomen):
    def meant(present, *names):
        return meaning(present, {"label_info": [{"name": name} for name in names]}, abdomen, "label")

    assert meant([1, 2], "ANTERIOR", " posterior").models == ("hippocampus",)
    assert meant([1], "Spleen").models == ("spleen", "amos")
    assert meant([1, 2], "spleen", "Right_Kidney").models == ("amos",)
    assert meant([1], "right kidney").classes == {2: "right kidney"}
    assert meant([], "anterior", "Segment_1").models == ("hippocampus",), "of an empty label what could have been"
    assert "rename them" in refused(422, meant, [1, 2], "anterior", "spleen")
    assert "rename them" in refused(422, meant, [], "tumour")


def test_numbers_that_could_be_of_several_models_are_refused(abdomen):
    detail = refused(422, meaning, [1], {}, abdomen, "label")
    assert "[1] could be anterior of hippocampus; spleen of spleen; spleen of amos" in detail
    assert "label_info" in detail and "model" in detail
    assert "could be" in refused(422, meaning, [], {}, abdomen, "label")
    assert meaning([1], {"model": "amos"}, abdomen, "label").models == ("amos",)
    assert meaning([15], {}, abdomen, "label").models == ("amos",)
    both = {name: abdomen[name] for name in ("spleen", "amos")}
    assert meaning([1], {}, both, "label").models == ("spleen", "amos"), "the same class in both"


def test_segmentations_from_elsewhere_are_of_the_models_that_know_the_most(abdomen):
    assert known_segments(["Spleen", "tumour"], abdomen) == ({"Spleen": 1}, ("spleen", "amos"))
    assert known_segments(["liver", "spleen"], abdomen) == ({"liver": 6, "spleen": 1}, ("amos",))
    assert known_segments(["tumour"], abdomen) == ({}, ())
