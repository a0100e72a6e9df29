"""What is found in data sets whose content is known because it was drawn."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medsaga.planning.facts import PERCENTILES, CaseFacts, ClassFacts, Intensities
from medsaga.planning.findings import find
from medsaga.planning.plan import look_at
from medsaga.planning.sheet import panels_of
from medsaga.planning.survey import Seen, look, survey
from tests.data.conftest import _write_nifti


def seen_in(folder, **options):
    return look_at(folder, workers=0, **options)


def test_sizes_spacing_plane_and_classes_are_those_that_were_drawn(volumes):
    found = seen_in(volumes).findings
    assert (found.cases, found.patients, found.listed, found.wrong) == (6, 6, 6, ())
    assert [found.rows.median, found.columns.median, found.slices.median] == [40, 30, 12]
    assert found.spacing[0].median == pytest.approx(0.8)
    assert found.spacing[1].median == pytest.approx(4.0)
    assert (found.planes, found.thick, found.volumes) == ({"axial": 6}, 1.0, 1.0)
    assert (found.modality, found.hu, found.label_values, found.empty) == ("CT", 1.0, None, 0)
    first, second = found.classes
    assert [first.name, second.name] == ["first box", "second box"]
    assert [first.cases, second.cases] == [1.0, pytest.approx(5 / 6)]
    assert [first.slices, second.slices] == [6 / 12, pytest.approx(5 * 3 / (6 * 12))]
    assert first.voxels == pytest.approx(10 * 5 * 6 / (12 * 40 * 30))
    assert first.diameter == pytest.approx(2 * np.sqrt(50 / np.pi))
    assert first.column == pytest.approx(7.5 / 30)
    assert second.column == pytest.approx(22.5 / 30)
    assert (found.slices_total, found.foreground_slices) == (72, 36)


def test_percentiles_are_numpys(volumes):
    found = seen_in(volumes).findings
    image = np.full((12, 40, 30), -1000.0)
    image[:, 4:36, 2:28] = 40
    image[2:8, 10:20, 5:10] = 100
    image[2:5, 10:20, 20:25] = 150
    assert found.intensities[0] == tuple(np.percentile(image, PERCENTILES))
    inside = [100.0] * 300 + [150.0] * 150
    assert found.inside[0] == tuple(np.percentile(inside, PERCENTILES))
    assert found.background == pytest.approx((image == 40).mean())


def test_boxes_side_by_side_are_found_to_be_mirror_images(volumes):
    # as large and as high, but half as deep: by which they are alike enough
    first, second = seen_in(volumes).findings.classes
    assert (first.mirrors, second.mirrors) == ("second box", "first box")


def test_white_masks_are_one_class_also_where_some_are_ones(pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "mixed")
    mask = np.asarray(Image.open(folder / "masks" / "p0.png"))
    Image.fromarray((mask > 0).astype(np.uint8)).save(folder / "masks" / "p0.png")
    found = seen_in(folder).findings
    assert (found.cases, found.label_values, len(found.classes)) == (6, None, 1)
    assert found.classes[0].cases == 1.0
    assert (found.classes[0].left, found.classes[0].one_sided) == (0.5, False)
    assert (found.unit, found.volumes, found.colour) == ("pixels", 0.0, False)


def test_other_values_are_listed_to_be_mapped(tmp_path, write_pictures):
    assert seen_in(write_pictures(tmp_path, value=150)).findings.label_values == [150]


def test_objects_with_numbers_of_their_own_are_told_apart(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for case, number in enumerate((12, 20, 35)):
        mask = np.zeros((64, 64), np.uint8)
        for n in range(number):
            row, column = divmod(n, 8)
            mask[8 * row + 2 : 8 * row + 6, 8 * column + 2 : 8 * column + 6] = n + 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"c{case}.png")
        Image.fromarray((mask > 0).astype(np.uint8) * 90 + 20).save(tmp_path / "images" / f"c{case}.png")
    looked = seen_in(tmp_path)
    found = looked.findings
    assert (found.label_values, found.instances, len(found.classes)) == ("instances", True, 1)
    assert (found.objects.least, found.objects.largest) == (12, 35)
    assert any("numbers of objects" in note for note in looked.notes)
    # unless they are said to be classes
    classes = seen_in(tmp_path, label_values=list(range(1, 36))).findings
    assert (classes.label_values, len(classes.classes)) == (None, 35)


def test_organs_that_some_cases_lack_are_no_objects():
    """15 classes in every case but for a few, as in AMOS."""
    one = ClassFacts(10, 2, 0.5, 0.5, 4.0)
    lacking = [(), (4,), (14,), (4, 14), (15,)]
    values = [tuple(v for v in range(1, 16) if v not in lacks) for lacks in lacking]
    found = find([{"image": f"{n}.nii", "label": f"{n}l.nii"} for n in range(5)], [seen(v, one) for v in values])
    assert (found.label_values, len(found.classes)) == (None, 15)


def seen(values, one=None):
    one = one or ClassFacts(10, 2, 0.5, 0.5, 4.0)
    numbers = tuple(float(which) for which in PERCENTILES)
    return Seen(
        CaseFacts(
            shape=(32, 32, 8),
            spacing=(1.0, 1.0, 1.0),
            volume=True,
            unit="mm",
            plane="axial",
            thick=False,
            colour=False,
            channels=1,
            intensities=(Intensities(numbers, numbers, 0.0),),
            labelled=True,
            values=values,
            classes=dict.fromkeys(values, one),
            foreground=one if values else None,
        )
    )


def test_a_mask_that_is_an_image_is_wrong_and_the_others_are_used():
    cases = [{"image": f"{n}.png", "label": f"{n}_mask.png"} for n in range(4)]
    found = find(cases, [seen((255,)), seen((255,)), seen(tuple(range(1, 200))), seen(())])
    assert (found.cases, found.empty, [row.file for row in found.wrong]) == (3, 1, ["2_mask.png"])
    assert "199 values" in found.wrong[0].wrong


def test_values_that_an_index_does_not_know_are_wrong():
    cases = [{"image": f"{n}.nii", "label": f"{n}_seg.nii"} for n in range(2)]
    found = find(cases, [seen((1, 2)), seen((1, 7))], {"organ": 1, "tumour": 2})
    assert [row.file for row in found.wrong] == ["1_seg.nii"]
    assert "values 7 belong to no class; the classes have 1, 2" in found.wrong[0].wrong


def test_values_that_a_user_does_not_name_are_background():
    cases = [{"image": f"{n}.nii", "label": f"{n}_seg.nii"} for n in range(2)]
    found = find(cases, [seen((1, 2, 5)), seen((1, 7))], class_names=["kidney", "liver"], stated=[5, 1])
    assert found.label_values == [[0, 2, 7], 5, 1]
    assert [(one.name, one.value) for one in found.classes] == [("kidney", 5), ("liver", 1)]


def test_nothing_to_learn_from_is_an_error():
    cases = [{"image": "0.nii", "label": "0_seg.nii"}]
    with pytest.raises(ValueError, match="so there is nothing to learn"):
        find(cases, [seen(())])


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["one"], "1 names, but the labels have 2 classes"),
        (["$__import__('os')", "two"], "an expression to evaluate"),
        (["one", "one"], "Two classes are called 'one'"),
        (["background", "two"], "Two classes are called 'background'"),
        (["one", " \n "], "no name"),
    ],
)
def test_names_of_classes_that_cannot_be(volumes, names, text):
    with pytest.raises(ValueError) as caught:
        seen_in(volumes, class_names=names)
    assert text in str(caught.value)


def test_wrong_files_are_named_with_their_cause_and_the_rest_is_used(volumes, tmp_path):
    folder = shutil.copytree(volumes, tmp_path / "wrong")
    cut = folder / "imagesTr" / "ct_1.nii.gz"
    cut.write_bytes(cut.read_bytes()[:200])
    _write_nifti(folder / "labelsTr" / "ct_3.nii.gz", np.ones((5, 5, 5), np.uint8))
    looked = seen_in(folder)
    found = looked.findings
    assert (found.cases, found.listed) == (4, 6)
    wrong = {row.file: row.wrong for row in found.wrong}
    assert set(wrong) == {str(cut), str(folder / "labelsTr" / "ct_3.nii.gz")}
    assert "the label has shape (5, 5, 5)" in wrong[str(folder / "labelsTr" / "ct_3.nii.gz")]
    assert [n for n, _ in looked.usable] == [0, 2, 4, 5]


def test_data_of_which_nothing_can_be_used_is_an_error_with_the_first_cause(tmp_path, write_pictures):
    folder = write_pictures(tmp_path, cases=2)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"None of the 2 cases can be used. The first: .*p0.png"):
        seen_in(folder)


def test_processes_find_the_same_as_this_one(volumes):
    cases = seen_in(volumes).source.layout.cases
    assert survey(cases, workers=2) == [look(case) for case in cases]


def test_colours_and_sequences_are_seen(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    random = np.random.RandomState(0)
    for case in range(3):
        Image.fromarray(random.randint(0, 255, (20, 20, 3)).astype(np.uint8)).save(tmp_path / "images" / f"{case}.png")
        mask = np.zeros((20, 20), np.uint8)
        mask[5:9, 5:9] = 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"{case}.png")
    found = seen_in(tmp_path).findings
    assert (found.colour, found.channels, len(found.intensities)) == (True, 3, 3)


def test_thick_slices_of_another_plane_are_seen(tmp_path):
    for case in range(2):
        image = np.random.RandomState(case).uniform(0, 100, (20, 24, 6)).astype(np.float32)
        label = (image > 90).astype(np.uint8)
        affine = np.diag([5.0, 1.0, 1.0, 1.0])  # 6 columns 5 mm apart: sagittal slices
        _write_nifti(tmp_path / "images" / f"{case}.nii.gz", image, affine)
        _write_nifti(tmp_path / "labels" / f"{case}.nii.gz", label, affine)
    found = seen_in(tmp_path).findings
    assert (found.planes, found.thick, found.slices.median) == ({"sagittal": 2}, 1.0, 6)
    assert [found.rows.median, found.columns.median] == [20, 24]
    assert seen_in(tmp_path, plane="axial").findings.planes == {"axial": 2}


def test_the_flip_of_bundle_hippocampus_follows_from_its_data(sample_data):
    from medsaga.planning.choice import Choices
    from medsaga.planning.flip import choose_flip

    choices = Choices({})
    choices.choose("plane", "auto", "")
    choose_flip(seen_in(sample_data / "Task04_Hippocampus").findings, choices)
    assert choices["flip"] is True


def test_slices_that_are_not_labelled_are_no_class(volumes, tmp_path):
    folder = shutil.copytree(volumes, tmp_path / "partly")
    for path in sorted((folder / "labelsTr").iterdir())[:2]:
        label = nib.load(path)
        values = np.asarray(label.dataobj).astype(np.uint8)
        values[..., [0, 4, 11]] = 255
        nib.save(nib.Nifti1Image(values, label.affine), path)
    looked = seen_in(folder)
    (panel,) = panels_of(looked.usable[0][1], 0, [1, 2], None, ["image"])
    assert set(panel.masks) == {1, 2} and "slice 3 of 12" in panel.title, "the fullest of those that are labelled"
    assert [one.name for one in looked.findings.classes] == ["first box", "second box"]
    assert any("In 2 of 6 labels 255 is taken as 'not labelled'" in note for note in looked.notes)
    assert not looked.findings.wrong


def test_a_class_in_two_pieces_is_told_from_one_in_one(volumes, tmp_path):
    assert [one.whole for one in seen_in(volumes).findings.classes] == [1.0, 1.0]
    folder = shutil.copytree(volumes, tmp_path / "pieces")
    path = min((folder / "labelsTr").iterdir())
    label = nib.load(path)
    values = np.asarray(label.dataobj).astype(np.uint8)
    values[0, 0, 10:] = 1  # two voxels away from the 300 of the box
    nib.save(nib.Nifti1Image(values, label.affine), path)
    assert [one.whole for one in seen_in(folder).findings.classes] == [pytest.approx(300 / 302), 1.0]
