"""What annotators store is checked and never lost: against files written by nibabel, PIL and ITK."""

import json
import os
import shutil
import zipfile
from functools import partial

import itk
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.stores import FolderStore
from lib.strategies.score_store import ScoreStore

from ..waiting import until
from .phantoms import AFFINE, SHAPE, a_label, everything, refused, save, stored, truncated

# --- names -----------------------------------------------------------------------------------------------------------

BAD_NAMES = ["../../x", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", " ", "a\0b", "a\nb", "x" * 300]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_no_plain_names_reach_no_file(store, volume, tmp_path, name):
    outside = everything(tmp_path)
    for function, args in [
        (store.add_image, (name, str(volume), {})),
        (store.save_label, (name, str(volume), "final", {})),
        (store.save_label, ("case", str(volume), name, {})),
        (store.get_image_uri, (name,)),
        (store.get_image_info, (name,)),
        (store.get_label_uri, (name, "final")),
        (store.get_label_uri, ("case", name)),
        (store.get_label_info, ("case", name)),
        (store.update_image_info, (name, {})),
        (store.remove_image, (name,)),
        (store.remove_label, (name, "final")),
        (store.remove_label, ("case", name)),
    ]:
        assert "plain name" in refused(400, function, *args)
    assert everything(tmp_path) == outside


def test_unknown_images_and_labels_are_named(store, volume):
    assert "nobody" in refused(404, store.get_image_uri, "nobody")
    assert "nobody" in refused(404, store.save_label, "nobody", str(volume), "final", {})
    assert "case" in refused(404, store.get_label_uri, "case", "final")
    refused(404, store.remove_image, "nobody")
    refused(404, store.remove_label, "case", "final")


def test_names_with_dots_spaces_and_letters_of_any_script_are_kept(store, volume):
    for name in ("1.2.840.113619", "Müller 2", "scan.nii"):
        assert store.add_image(name, str(volume), {}) == name
        assert os.path.samefile(os.path.dirname(store.get_image_uri(name)), store._datastore_path)
    assert set(store.list_images()) == {"case", "1.2.840.113619", "Müller 2", "scan.nii"}


# --- images ----------------------------------------------------------------------------------------------------------


def test_an_id_keeps_its_image(store, volume, tmp_path):
    before = everything(tmp_path / "studies")
    assert store.add_image("case", str(volume), {}) == "case"  # the same once more, as Slicer does
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE), other)
    assert "case" in refused(409, store.add_image, "case", str(other), {})
    assert everything(tmp_path / "studies") == before


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".png", ".jpg", ".tif"])
def test_whole_images_are_taken_and_truncated_ones_refused(store, volume, tmp_path, suffix):
    path = tmp_path / f"upload{suffix}"
    if suffix.startswith(".nii"):
        nib.save(nib.load(volume), path)
    elif suffix == ".nrrd":
        itk.imwrite(itk.imread(str(volume)), str(path))
    else:
        Image.fromarray(np.random.RandomState(1).randint(0, 255, (64, 48), dtype=np.uint8)).save(path)
    store.add_image("whole", str(path), {})
    truncated(path)
    assert "cut" in refused(422, store.add_image, "cut", str(path), {})
    assert set(store.list_images()) == {"case", "whole"}


def test_junk_and_what_has_too_many_axes_is_refused(store, tmp_path):
    for suffix in (".nii.gz", ".nii", ".nrrd", ".png"):
        path = tmp_path / f"junk{suffix}"
        path.write_bytes(os.urandom(5000))
        detail = refused(422, store.add_image, "junk", str(path), {})
        assert detail.startswith("junk: ") and "damaged" in detail
        assert str(tmp_path) not in detail, "a client learns nothing of the server's folders"
    path = tmp_path / "junk.txt"
    path.write_text("text")
    assert ".nii.gz" in refused(422, store.add_image, "junk", str(path), {})
    path = tmp_path / "series.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 3), np.float32), AFFINE), path)
    assert "4-D image with 3 volumes" in refused(422, store.add_image, "series", str(path), {})


def test_limit_of_size_holds_for_the_file_and_for_its_values(store, volume, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAGA_MAX_IMAGE_GB", "0.000001")  # 1 kB
    assert "MEDSAGA_MAX_IMAGE_GB" in refused(413, store.add_image, "large", str(volume), {})
    bomb = tmp_path / "bomb.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40), np.uint8), AFFINE), bomb)
    assert bomb.stat().st_size < 1000
    assert "(40, 40, 40)" in refused(422, store.add_image, "bomb", str(bomb), {})


# --- nothing is lost -------------------------------------------------------------------------------------------------


def test_former_labels_are_kept_with_time_and_annotator(store, tmp_path):
    for row, name in enumerate(("ann", "bob/../x", "ann")):
        answer = save(store, tmp_path, a_label(*[1] * (row + 1)), client_id=name)
    assert answer["annotator"] == "ann"
    history = sorted((tmp_path / "studies" / ".medsaga" / "history" / "final").glob("*.nii.gz"))
    assert [p.name.split(".")[-3] for p in history] == ["ann", "bob____x"]
    assert str(history[-1].relative_to(tmp_path / "studies")) == answer["former_label"]
    for row, path in enumerate(history):
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), a_label(*[1] * (row + 1)))
        info = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert info["annotator"] == ("ann", "bob/../x")[row]


def test_another_format_replaces_the_former_file(store, tmp_path):
    save(store, tmp_path, a_label(1), name="upload.nii.gz")
    save(store, tmp_path, a_label(2), name="upload.nii")
    folder = tmp_path / "studies" / "labels" / "final"
    assert [p.name for p in folder.iterdir()] == ["case.nii"]
    assert stored(store).max() == 2


def test_proposals_are_not_kept(store, tmp_path):
    for value in (1, 2):
        answer = save(store, tmp_path, a_label(value), tag="original", model="hippocampus", version="model.pt@1")
    assert answer["former_label"] is None
    assert not (tmp_path / "studies" / ".medsaga" / "history").exists()
    assert stored(store, tag="original").max() == 2
    assert store.get_label_info("case", "original")["version"] == "model.pt@1"


def test_tags_stay_apart(store, volume, tmp_path):
    store.add_image("second", str(volume), {})
    save(store, tmp_path, a_label(1), tag="ann")
    save(store, tmp_path, a_label(2), tag="bob")
    save(store, tmp_path, a_label(1, 2))
    assert [stored(store, tag=tag).max() for tag in ("ann", "bob", "final")] == [1, 2, 2]
    assert store.status() == {"total": 2, "completed": 1, "label_tags": {"ann": 1, "bob": 1, "final": 1}}
    assert store.get_unlabeled_images() == ["second"]
    assert store.get_labeled_images("ann") == ["case"]
    store.remove_label("case", "ann")
    assert store.status()["label_tags"] == {"bob": 1, "final": 1}
    assert len(list((tmp_path / "studies" / ".medsaga" / "history" / "ann").glob("*.nii.gz"))) == 1


def test_archive_of_what_is_labelled(store, tmp_path):
    assert "no labelled image" in refused(404, store.get_dataset_archive, None)
    save(store, tmp_path, a_label(1))
    archive = store.get_dataset_archive(None)
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == ["image/case.nii.gz", "label/case.nii.gz", "metadata.json"]
    os.unlink(archive)


def test_removing_an_image_leaves_nothing_of_it(store, volume, tmp_path, models):
    store.add_image("case.1", str(volume), {})  # its history is its own
    for image in ("case", "case.1"):
        for _ in range(2):
            save(store, tmp_path, a_label(1), image=image)
        ScoreStore(partial(store.private.image_scores, "hippocampus")).put(image, str(volume), "entropy", "v", 1.0)
    store.remove_image("case")
    left = [name for name in everything(tmp_path / "studies") if "case" in name]
    assert sorted(name.split("/")[-1].split("case.1")[0] for name in left) == [""] * 5, left
    assert store.list_images() == ["case.1"]
    assert FolderStore(str(tmp_path / "studies"), models=models).list_images() == ["case.1"]


@pytest.mark.parametrize("image", ["case 1", "a*[b]?", "50%20", "ü" * 100, "x" * 200], ids=range(5))
def test_whatever_an_images_name_its_scores_and_history_go_with_it(store, volume, tmp_path, image):
    empty = everything(tmp_path / "studies")
    store.add_image(image, str(volume), {})
    for _ in range(2):
        save(store, tmp_path, a_label(1), image=image, client_id="ü" * 60)
    scores = ScoreStore(partial(store.private.image_scores, "hippocampus"))
    scores.put(image, str(volume), "entropy", "v", 1.0)
    assert scores.get(image, "entropy", "v") == 1.0
    others = [store.private.image_scores("hippocampus", name) for name in ("case 10", "case", "ü" * 99)]
    for other in others:
        other.write_text("of another image")
    assert len(everything(tmp_path / "studies")) == len(empty) + 1 + 1 + 2 + 1 + 3
    store.remove_image(image)
    left = everything(tmp_path / "studies")
    assert set(left) - set(empty) == {str(other.relative_to(tmp_path / "studies")) for other in others}


def test_files_put_into_the_folder_are_found_and_hidden_ones_not(store, volume, tmp_path, models):
    studies = tmp_path / "studies"
    shutil.copy(volume, studies / "copied.nii.gz")
    shutil.copy(volume, studies / ".partial.nii.gz")
    shutil.copy(volume, studies / "labels" / "final" / "copied.nii.gz")
    (studies / "labels" / ".cache").mkdir()
    shutil.copy(volume, studies / "labels" / ".cache" / "copied.nii.gz")
    for _ in range(2):
        again = FolderStore(str(studies), models=models)
        assert set(again.list_images()) == {"case", "copied"}
        assert again.status() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}


def test_a_watched_folder_follows_copies_renames_and_other_processes(store, volume, tmp_path, models):
    studies = tmp_path / "studies"
    watched = FolderStore(str(studies), models=models, auto_reload=True)

    try:
        shutil.copy(volume, studies / "copied.nii.gz")
        until(lambda: "copied" in watched.list_images())
        shutil.copy(volume, studies / ".rsync")
        os.rename(studies / ".rsync", studies / "renamed.nii.gz")
        until(lambda: "renamed" in watched.list_images())
        save(store, tmp_path, a_label(1))
        until(lambda: watched.status()["completed"] == 1)
        assert watched.get_label_info("case", "final")["voxels"] == {"anterior": 6}
        os.unlink(studies / "copied.nii.gz")
        until(lambda: "copied" not in watched.list_images())
    finally:
        watched._observer.stop()
        watched._observer.join()
