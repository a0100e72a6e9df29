"""Notes about images and labels are taken only as they can be read back."""

import json

import numpy as np
import pytest
from lib.stores import FolderStore
from lib.stores.info import read_info
from monailabel.interfaces.datastore import DefaultLabelTag

from .phantoms import a_label, everything, refused, save


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


REFUSED = {
    "nested": ({"a": nested(300)}, "a[0]"),
    "nested names": ({"a": {"b": nested(40)}}, "a.b"),
    "NaN": ({"a": float("nan")}, "a is nan"),
    "infinite": ({"a": {"b": [1, float("inf")]}}, "a.b[1] is inf"),
    "surrogate": ({"a": "x\ud800"}, "a holds"),
    "surrogate in a name": ({"a": {"\udfff": 1}}, "a name in a"),
    "long number": ({"a": 10**400}, "a is a number"),
    "large": ({"a": "x" * 300_000}, "at most 262144"),
    "time": ({"ts": "abc"}, "ts: "),
    "negative time": ({"ts": -1}, "ts: "),
    "far time": ({"ts": 1e300}, "ts: "),
    "true": ({"ts": True}, "ts: "),
    "first time": ({"first_saved": None}, "first_saved: "),
    "name": ({"name": 5}, "name: "),
    "annotator": ({"annotator": ["ann"]}, "annotator: "),
    "client": ({"client_id": {}}, "client_id: "),
    "models": ({"models": "hippocampus"}, "models: "),
    "a model": ({"models": [1]}, "models.0: "),
    "model": ({"model": ["a"]}, "model: "),
    "voxels": ({"voxels": {"anterior": "many"}}, "voxels.anterior: "),
    "handed out": ({"strategy": {"first": {"ts": "soon"}}}, "strategy.first.ts: "),
    "handed to": ({"strategy": {"first": {"client_id": 5}}}, "strategy.first.client_id: "),
    "measure": ({"dice": {"of": []}}, "dice.by_class: "),
    "list": ([1], "list"),
    "text": ("x", "str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_read_back_is_refused_by_the_fields_name(store, volume, tmp_path, models, case):
    info, message = REFUSED[case]
    save(store, tmp_path, a_label(1, 2))
    label = str(tmp_path / "upload.nii.gz")
    before = everything(tmp_path / "studies")
    for function, *args in [
        (store.update_image_info, "case", info),
        (store.update_label_info, "case", "final", info),
        (store.add_image, "new", str(volume), info),
        (store.save_label, "case", label, "final", info),
    ]:
        detail = refused(422, function, *args)
        assert message in detail, detail
        assert "case" in detail or "new" in detail
        detail.encode()
    assert everything(tmp_path / "studies") == before
    save(store, tmp_path, a_label(1))
    assert FolderStore(str(tmp_path / "studies"), models=models).json() == store.json()


def test_notes_add_up_to_the_limit_and_no_further(store):
    for number in range(2):
        store.update_image_info("case", {f"note{number}": "x" * 100_000})
    assert "at most" in refused(422, store.update_image_info, "case", {"note2": "x" * 100_000})


def test_what_is_taken_comes_back(store, tmp_path, models):
    info = {"a": {"b": [1, 2.5, None, True, "ü 😀"]}, "": -(2**63), "deep": nested(30)}
    store.update_image_info("case", info)
    again = FolderStore(str(tmp_path / "studies"), models=models).get_image_info("case")
    assert {key: again[key] for key in info} == info


def test_python_values_become_those_of_json():
    taken = read_info({"a": np.float32(0.5), "b": (np.int64(3),), "tag": DefaultLabelTag.FINAL, 5: np.bool_(True)})
    assert json.dumps(taken) == '{"a": 0.5, "b": [3], "tag": "final", "5": true}'


@pytest.mark.parametrize("seed", range(20))
def test_any_json_is_refused_or_read_back_as_it_was(store, tmp_path, models, seed):
    random = np.random.RandomState(seed)
    keys = ["a", "ts", "name", "models", "strategy", "voxels", "annotator", "dice", "", "ü"]
    leaves = [0, -1, 1.5, float("nan"), 10**30, "x", "\ud83d", None, True, 1e308]

    def value(depth):
        kind = random.randint(4) if depth < random.choice([2, 5, 60]) else 0
        if kind == 1:
            return {keys[random.randint(len(keys))]: value(depth + 1) for _ in range(random.randint(3))}
        return [value(depth + 1)] if kind > 1 else leaves[random.randint(len(leaves))]

    for _ in range(50):
        info = {keys[random.randint(len(keys))]: value(1)}
        try:
            taken = read_info(info)
        except ValueError as err:
            str(err).encode()
            continue
        assert taken == info and read_info(json.loads(json.dumps(taken, allow_nan=False))) == info
