"""Files and their list change together, whatever happens meanwhile."""

import json
import os
import threading

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.stores import FolderStore

from .phantoms import AFFINE, a_label, everything, save, stored


def test_another_process_sees_the_same_and_both_can_write(store, volume, tmp_path, models):
    other = FolderStore(str(tmp_path / "studies"), models=models)
    save(store, tmp_path, a_label(1))
    other.update_image_info("case", {"scores": 1})
    store.add_image("second", str(volume), {})
    other.refresh()
    for one in (store, other):
        assert one.get_image_info("case")["scores"] == 1 or one is store
        assert one.status()["completed"] == 1
    store.update_image_info("second", {"x": 2})
    assert store.get_image_info("case")["scores"] == 1


def test_many_threads_lose_nothing(store, volume, tmp_path):
    def work(number):
        image = f"image{number}"
        store.add_image(image, str(volume), {})
        (tmp_path / image).mkdir()
        save(store, tmp_path / image, a_label(1 + number % 2), image=image)
        store.update_image_info(image, {"number": number})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = json.loads((tmp_path / "studies" / "datastore_v2.json").read_text())["objects"]
    assert len(written) == 13
    for number in range(12):
        assert written[f"image{number}"]["image"]["info"]["number"] == number
        assert stored(store, f"image{number}").max() == 1 + number % 2


def nested(depth):
    return "[" * depth + "]" * depth


DAMAGED = {
    "nested": f'{{"a": {nested(300)}}}',
    "nan": '{"a": NaN}',
    "infinite": '{"a": [-Infinity]}',
    "surrogate": r'{"a": "\ud800"}',
    "time": '{"a": 1, "ts": "abc"}',
    "far time": '{"ts": 1e300}',
    "models": '{"models": "hippocampus"}',
    "handed out": '{"strategy": {"first": {"ts": "soon"}}}',
    "no object": '"text"',
    "long number": f'{{"a": {"9" * 400}}}',
}


@pytest.mark.parametrize("part", ["image", "label"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_entry_is_set_aside_and_the_rest_is_served(store, volume, tmp_path, models, caplog, damage, part):
    store.add_image("second", str(volume), {})
    save(store, tmp_path, a_label(1, 2), client_id="ann")
    store.update_image_info("second", {"note": "stays"})
    path = tmp_path / "studies" / "datastore_v2.json"
    content = json.loads(path.read_text())
    data = content["objects"]["case"]["image" if part == "image" else "labels"]
    data = data if part == "image" else data["final"]
    data["info"] = "DAMAGED"
    path.write_text(json.dumps(content).replace('"DAMAGED"', DAMAGED[damage]))

    for _ in range(2):  # the second start finds nothing wrong
        again = FolderStore(str(tmp_path / "studies"), models=models)
        assert set(again.list_images()) == {"case", "second"}
        assert again.get_image_info("second")["note"] == "stays"
        assert again.status()["completed"] == 1
        np.testing.assert_array_equal(stored(again), a_label(1, 2))
        json.dumps(again.json(), allow_nan=False).encode()
    (aside,) = (tmp_path / "studies" / ".medsaga" / "set_aside").iterdir()
    assert aside.name in caplog.text and "case" in caplog.text
    assert "second" not in aside.read_text()
    if damage == "time":  # what can be read of it stays
        info = again.get_image_info("case") if part == "image" else again.get_label_info("case", "final")
        assert info["a"] == 1 and "abc" in aside.read_text()
    save(again, tmp_path, a_label(2))
    again.update_image_info("case", {"note": 1})


@pytest.mark.parametrize(
    "entry", ["null", "[]", '{"image": 1}', '{"image": {"ext": "/../x"}}', '{"image": {"ext": 3}}']
)
def test_an_entry_that_names_no_file_is_set_aside_and_its_files_are_found_again(store, tmp_path, models, entry):
    save(store, tmp_path, a_label(1, 2))
    path = tmp_path / "studies" / "datastore_v2.json"
    content = json.loads(path.read_text())
    content["objects"]["case"] = "DAMAGED"
    path.write_text(json.dumps(content).replace('"DAMAGED"', entry))
    again = FolderStore(str(tmp_path / "studies"), models=models)
    assert again.status() == {"total": 1, "completed": 1, "label_tags": {"final": 1}}
    (aside,) = (tmp_path / "studies" / ".medsaga" / "set_aside").iterdir()
    assert "case" in json.loads(aside.read_text())


UNREADABLE = {
    "cut off": lambda text: text[:50],
    "no object": lambda text: "[]",
    "empty": lambda text: "",
    "no text": lambda text: "\udcff",
    "nested": lambda text: nested(99999),
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_a_list_that_cannot_be_read_is_kept_and_images_are_listed_anew(store, tmp_path, models, caplog, damage):
    save(store, tmp_path, a_label(1, 2))
    path = tmp_path / "studies" / "datastore_v2.json"
    content = UNREADABLE[damage](path.read_text()).encode(errors="surrogateescape")
    path.write_bytes(content)
    again = FolderStore(str(tmp_path / "studies"), models=models)
    assert again.status() == {"total": 1, "completed": 1, "label_tags": {"final": 1}}
    (aside,) = (tmp_path / "studies" / ".medsaga" / "set_aside").iterdir()
    assert aside.read_bytes() == content
    assert "listed anew" in caplog.text and aside.name in caplog.text
    assert len(json.loads(path.read_text())["objects"]) == 1


@pytest.fixture
def small_disk(mount, tmp_path):
    return mount(tmp_path / "disk", "256k")


@pytest.mark.parametrize("room", [0, 4, 8, 12, 16, 20])
def test_a_full_disk_leaves_what_was_there(small_disk, volume, tmp_path, models, room):
    store = FolderStore(str(small_disk / "studies"), models=models)
    store.add_image("case", str(volume), {})
    save(store, tmp_path, a_label(1, 2), client_id="ann")
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(b"x" * (free - room * 1024))
    noise = tmp_path / "noise.nii"
    nib.save(nib.Nifti1Image(np.random.RandomState(0).randint(0, 3, (16, 16, 80)).astype(np.uint8), AFFINE), noise)
    failed = []
    for what, args in [
        (store.save_label, ("case", str(tmp_path / "upload.nii.gz"), "final", {})),
        (store.save_label, ("case", str(tmp_path / "upload.nii.gz"), "other", {})),
        (store.add_image, ("second", str(noise), {})),
        (store.update_image_info, ("case", {"large": "x" * 20000})),
        (store.remove_label, ("case", "final")),
    ]:
        before, status = everything(small_disk / "studies"), store.status()
        try:
            what(*args)
        except HTTPException as err:
            failed.append(err.status_code)
            unchanged = everything(small_disk / "studies") == before and store.status() == status
            assert unchanged, what
    assert set(failed) == {507}
    assert len(failed) >= (5 if room == 0 else 2)
    filler.unlink()
    again = FolderStore(str(small_disk / "studies"), models=models)
    assert again.status() == store.status()
    save(again, tmp_path, a_label(2))
