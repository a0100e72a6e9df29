"""Each rule on findings made by hand, on both sides of where it decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medsaga.planning.choice import Choices
from medsaga.planning.classes import ClassFinding
from medsaga.planning.facts import PERCENTILES
from medsaga.planning.findings import Findings, Range
from medsaga.planning.flip import choose_flip
from medsaga.planning.intensities import choose_input, choose_intensities
from medsaga.planning.machine import Machine
from medsaga.planning.pieces import choose_pieces
from medsaga.planning.training import choose_patients, choose_steps

CPU = Machine(False, 8e9, "a test's machine")
GPU = Machine(True, 24e9, "a test's GPU")


def same(number):
    return Range(number, number, number)


def found(**changes):
    values = tuple(float(which) for which in PERCENTILES)  # the p-th percentile is p
    start = Findings(
        cases=40,
        patients=40,
        volumes=1.0,
        rows=same(200),
        columns=same(180),
        slices=same(50),
        planes={"axial": 40},
        intensities=(values,),
        inside=(values,),
        classes=(ClassFinding("organ"),),
        slices_total=2000,
        foreground_slices=1000,
    )
    return replace(start, **changes)


def chosen(rule, findings, *more, asked=None, before=None):
    choices = Choices({**(before or {}), **(asked or {})})
    for name, value in (before or {}).items():
        choices.choose(name, value, "")
    rule(findings, choices, *more)
    return choices


# --- intensities -----------------------------------------------------------------------------------------------------


def hounsfield(low, high, name="spleen"):
    """A CT whose labels lie mostly from ``low`` to ``high``."""
    whole = (-1024, -1020, -1000, -990, -20, 300, 700, 900, 1200, 2000)
    inside = tuple(low if which <= 5 else high if which >= 95 else (low + high) / 2 for which in PERCENTILES)
    return found(hu=1.0, modality="CT", intensities=(whole,), inside=(inside,), classes=(ClassFinding(name),))


@pytest.mark.parametrize(
    ("low", "high", "name", "window"),
    [
        (-40, 180, "spleen", [-160, 240]),  # as bundle spleen
        (20, 70, "haemorrhage", [0, 80]),
        (20, 70, "liver", [-160, 240]),  # as narrow, and no brain
        (-950, 100, "lung", [-1000, 400]),
        (100, 1200, "femur", [-200, 1300]),
        (-900, 1200, "body", [-1000, 1300]),
        (500, 2500, "metal", [100, 2900]),  # no usual window holds it: with a fifth as margin
    ],
)
def test_a_ct_gets_the_narrowest_usual_window_that_holds_the_labels(low, high, name, window):
    assert chosen(choose_intensities, hounsfield(low, high, name))["intensities"] == {"range": window}


def test_images_without_a_scale_get_percentiles():
    choices = chosen(choose_intensities, found())
    assert choices["intensities"] == {"percentiles": [0.5, 99.5], "floor": None}


def test_called_ct_without_hounsfield_units_gets_percentiles_and_the_reason_says_so():
    (choice,) = chosen(choose_intensities, found(modality="CT", hu=0.0)).made
    assert choice.value == {"percentiles": [0.5, 99.5], "floor": None}
    assert "not Hounsfield units" in choice.reason


def test_ct_and_mri_together_get_percentiles_above_air_as_bundle_amos():
    assert chosen(choose_intensities, found(hu=0.6))["intensities"] == {"percentiles": [0.5, 99.0], "floor": -160.0}


def test_of_a_masked_image_the_share_of_what_is_imaged_is_clipped():
    # 0.5 % of the 20 % that are no background
    assert chosen(choose_intensities, found(background=0.8))["intensities"]["percentiles"] == [0.1, 99.9]
    assert chosen(choose_intensities, found(background=0.2))["intensities"]["percentiles"] == [0.5, 99.5]


def test_bright_objects_are_not_clipped_as_in_bundle_isles():
    bright = tuple(99.7 for _ in PERCENTILES)  # above the 99.5th percentile of the image, which is 99.5
    assert chosen(choose_intensities, found(inside=(bright,)))["intensities"]["percentiles"] == [0.5, 99.9]


# --- plane, encoder and size -----------------------------------------------------------------------------------------


def test_pictures_have_no_plane():
    assert chosen(choose_input, found(volumes=0.0), CPU)["plane"] is None
    assert chosen(choose_input, found(volumes=0.5), CPU)["plane"] == "auto"


@pytest.mark.parametrize(
    ("longer", "size"),
    [(50, 56), (112, 112), (122, 112), (130, 168), (200, 224), (224, 224), (240, 224), (256, 256), (512, 256)],
)
def test_the_size_is_the_smallest_that_keeps_the_slice(longer, size):
    for rows, columns in ((longer, longer - 20), (longer - 20, longer)):
        assert chosen(choose_input, found(rows=same(rows), columns=same(columns)), CPU)["image_size"] == size


def test_a_gpu_gets_the_larger_encoder_where_slices_are_large():
    large, small = found(rows=same(512)), found(rows=same(256))
    on_gpu = chosen(choose_input, large, GPU)
    assert [on_gpu[key] for key in ("encoder", "weights", "image_size")] == ["vit_b", "sam_vit_b", 512]
    for findings, machine in ((large, CPU), (small, GPU)):
        choices = chosen(choose_input, findings, machine)
        assert [choices[key] for key in ("encoder", "weights", "image_size")] == ["vit_t", "lite_medsam", 256]


def test_the_encoder_that_is_asked_for_decides_on_weights_and_size():
    choices = chosen(choose_input, found(rows=same(512)), CPU, asked={"encoder": "vit_b"})
    assert [choices[key] for key in ("encoder", "weights", "image_size")] == ["vit_b", "sam_vit_b", 512]
    assert "--encoder" in next(choice.reason for choice in choices.made if choice.field == "encoder")


def test_objects_that_vanish_at_the_size_are_spoken_of():
    def reason(diameter):
        classes = (ClassFinding("large", diameter=500), ClassFinding("small", diameter=diameter))
        choices = chosen(choose_input, found(rows=same(2560), classes=classes), CPU)
        return next(choice.reason for choice in choices.made if choice.field == "image_size")

    assert "small is about 3 pixels across then, and much of it will be missed" in reason(30)
    assert "will be missed" not in reason(50)


# --- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "instances", "names"),
    [
        ({"whole": 1.0}, False, ["organ"]),
        ({"whole": 0.995}, False, ["organ"]),
        ({"whole": 0.99}, False, []),
        ({"whole": 1.0, "seen": 4}, False, []),
        ({"whole": 1.0}, True, []),
    ],
)
def test_only_classes_of_one_piece_in_every_label_keep_their_largest(changes, instances, names):
    classes = (ClassFinding("organ", **changes), ClassFinding("lesions", whole=0.4))
    choices = chosen(choose_pieces, found(classes=classes, instances=instances))
    assert choices["largest_component"] == names


# --- flip ------------------------------------------------------------------------------------------------------------

MIDDLE = {"column": 0.5, "left": 0.5, "seen": 40}


@pytest.mark.parametrize(
    ("classes", "flip", "why"),
    [
        ([ClassFinding("anterior", **MIDDLE), ClassFinding("posterior", **MIDDLE)], True, "middle"),  # hippocampus
        ([ClassFinding("right lung"), ClassFinding("left lung"), ClassFinding("heart")], False, "left from right"),
        ([ClassFinding("kidney_L"), ClassFinding("kidney_R")], False, "left from right"),
        ([ClassFinding("class 1", mirrors="class 2"), ClassFinding("class 2", mirrors="class 1")], False, "mirror"),
        ([ClassFinding("spleen", **MIDDLE)], False, "spleen"),
        ([ClassFinding("liver"), ClassFinding("liver tumour")], False, "liver"),
        ([ClassFinding("stroke lesion", seen=1)], True, "anywhere"),  # isles
        ([ClassFinding("class 1", seen=1)], False, "too few"),
        ([ClassFinding("class 1", column=0.3, left=1.0, seen=40)], False, "left half"),
        ([ClassFinding("class 1", column=0.7, left=0.05, seen=40)], False, "right half"),
        ([ClassFinding("class 1", column=0.35, left=0.7, seen=40)], True, "both sides"),
        ([ClassFinding("class 1", column=0.45, left=1.0, seen=40)], True, "middle"),
        ([ClassFinding("bright", **MIDDLE)], True, "middle"),  # no "right" in it
    ],
)
def test_slices_are_mirrored_only_where_that_teaches_nothing_wrong(classes, flip, why):
    (choice,) = chosen(choose_flip, found(classes=tuple(classes)), before={"plane": "auto"}).made[1:]
    assert choice.value is flip
    assert why in choice.reason


def test_objects_told_apart_may_be_mirrored_and_sagittal_slices_not():
    cells = found(classes=(ClassFinding("object", seen=1),), instances=True)
    assert chosen(choose_flip, cells, before={"plane": None})["flip"] is True
    middle = (ClassFinding("organ", **MIDDLE),)
    sagittal = found(classes=middle, planes={"sagittal": 30, "axial": 10})
    assert chosen(choose_flip, sagittal, before={"plane": "auto"})["flip"] is False
    assert chosen(choose_flip, sagittal, before={"plane": "axial"})["flip"] is True
    assert chosen(choose_flip, found(classes=middle), before={"plane": "sagittal"})["flip"] is False


# --- patients and slices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patients", "test", "validation", "train"),
    [
        (1, 0, 0, None),
        (2, 1, 0, None),
        (3, 1, 1, None),
        (9, 2, 1, None),
        (41, 10, 4, None),  # spleen: 10, 5
        (80, 20, 8, None),
        (120, 20, 10, None),  # chest_xray: 20, 10
        (250, 50, 10, 100),  # isles: 50, 10
        (10_000, 50, 10, 100),
    ],
)
def test_patients_are_shared_out_by_their_number(patients, test, validation, train):
    from medsaga.data import split_by_patient

    choices = chosen(choose_patients, found(cases=patients, patients=patients, slices_total=10 * patients))
    numbers = [choices[key] for key in ("test_patients", "val_patients", "train_patients")]
    assert numbers == [test, validation, train]
    datalist = [{"image": f"{n}.png", "patient": str(n)} for n in range(patients)]
    parts = split_by_patient(datalist, *numbers)
    assert [len(parts["test"]), len(parts["validation"])] == [test, validation]
    assert len(parts["train"]) == (train or patients - test - validation) >= 1


def test_numbers_that_are_asked_for_count_for_the_rest():
    choices = chosen(choose_patients, found(patients=40), asked={"test_patients": 0.5})
    assert choices["test_patients"] == 0.5
    assert choices.training_slices == round(2000 * (20 - 4) / 40)


def test_empty_slices_are_left_out_where_they_are_most():
    assert chosen(choose_patients, found(foreground_slices=400))["min_classes"] == 1
    assert chosen(choose_patients, found(foreground_slices=600))["min_classes"] == 0


def test_many_slices_are_drawn_from_and_few_all_taken():
    assert chosen(choose_patients, found(slices_total=2000))["num_slices"] == 1000
    choices = chosen(choose_patients, found(slices_total=400, foreground_slices=400))
    assert choices["num_slices"] is None
    assert choices.training_slices == round(400 * 26 / 40)


def test_what_the_data_set_splits_itself_is_kept_and_the_rest_drawn_from_its_training_patients():
    from medsaga.data import training_parts

    sizes = {"train": 28, "test": 12}
    choices = chosen(choose_patients, found(patients=40, split=sizes))
    assert [choices[key] for key in ("test_patients", "val_patients", "train_patients")] == [12, 3, None]
    assert choices.training_slices == 1000  # of 1250
    datalist = [{"image": f"{part}{n}.png", "split": part} for part, number in sizes.items() for n in range(number)]
    parts = training_parts(datalist, None, choices["test_patients"], choices["val_patients"])
    assert {part: len(cases) for part, cases in parts.items()} == {"train": 25, "validation": 3, "test": 12}


# --- steps -----------------------------------------------------------------------------------------------------------


def steps(machine=CPU, peak=None, slices=100, asked=None, **before):
    choices = Choices(asked or {})
    choices.training_slices = slices
    for name, value in {"encoder": "vit_t", "image_size": 56, "num_slices": None, "val_patients": 5, **before}.items():
        choices.choose(name, value, "")
    choose_steps(found(), choices, machine, peak)
    return choices


def test_small_slices_are_trained_as_bundle_hippocampus():
    choices = steps()
    names = ("batch_size", "lr", "encoder_lr", "warmup_steps", "epochs", "val_interval", "checkpointing")
    assert [choices[name] for name in names] == [4, 0.001, 0.0002, 50, 40, 5, "off"]


def test_large_slices_on_a_cpu_are_trained_less_as_bundle_chest_xray():
    choices = steps(image_size=256, slices=50)
    assert [choices[name] for name in ("batch_size", "epochs", "encoder_lr")] == [2, 12, 0.0005]  # 300 steps of 2
    assert steps(encoder="vit_b", image_size=256)["encoder_lr"] == 0.0002


def test_a_large_encoder_on_a_gpu_gets_the_papers_rates_as_bundle_amos():
    choices = steps(GPU, encoder="vit_b", image_size=512, slices=500)
    names = ("batch_size", "lr", "encoder_lr", "warmup_steps", "epochs", "num_workers")
    assert [choices[name] for name in names] == [12, 0.005, 0.001, 250, 60, 2]
    # on a small batch the papers' rates do not learn
    assert steps(GPU, encoder="vit_b", image_size=512, asked={"batch_size": 4})["lr"] == 0.001


@pytest.mark.parametrize(("slices", "epochs"), [(1, 200), (4, 200), (1000, 4), (100_000, 1)])
def test_epochs_follow_the_number_of_slices(slices, epochs):
    choices = steps(slices=slices)
    assert choices["epochs"] == epochs
    assert 1 <= choices["val_interval"] <= epochs
    assert choices["warmup_steps"] >= 1


def test_batch_and_recomputation_fit_the_memory():
    taken = {"off": 1.5e9, "blocks": 0.6e9, "least": 0.5e9}

    def peak(fields):
        return taken[fields["checkpointing"]] * fields["batch_size"]

    for memory, expected in ((7e9, (4, "off")), (2.5e9, (4, "blocks")), (2.1e9, (4, "least")), (1.3e9, (2, "blocks"))):
        choices = steps(Machine(False, memory, "a test's machine"), peak)
        assert (choices["batch_size"], choices["checkpointing"]) == expected
        assert "a test's machine" in choices.made[-1].reason or any(
            "a test's machine" in c.reason for c in choices.made
        )
    # nothing fits: the leanest, and it says so
    choices = steps(Machine(False, 1e8, "a test's machine"), peak)
    assert (choices["batch_size"], choices["checkpointing"]) == (1, "least")
    assert any("MORE than" in choice.reason for choice in choices.made)
    # what is asked for stays
    choices = steps(Machine(False, 1.3e9, "a test's machine"), peak, asked={"batch_size": 4})
    assert choices["batch_size"] == 4


def test_every_choice_has_a_reason():
    choices = steps(GPU)
    assert all(
        choice.reason.endswith(".")
        for choice in choices.made
        if choice.field not in ("encoder", "image_size", "num_slices", "val_patients")
    )


def test_slices_of_all_planes_are_those_that_are_labelled():
    few = found(slices_total=2000, patients=40)
    asked = {"train_patients": 10, "num_slices": None}
    counts = [
        chosen(choose_patients, few, asked=asked, before={"plane": plane}).training_slices for plane in ("auto", "all")
    ]
    assert counts == [500, 500]
