from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from medsaga.networks import SamSegmenter, load_weights
from medsaga.networks.merge import merge_file
from medsaga.networks.saved_state import read_state
from medsaga.records import learnt_patients, read_record, record_of, with_record

RECORD = {"train": ["b", "a"], "learnt_before": ["c"], "labelled": True, "seed": 0, "none": None, "rate": 0.5}


def saved(path, content):
    torch.save(content, path)
    return path


def test_a_state_dict_stays_one(tmp_path):
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = network.state_dict()
    path = saved(tmp_path / "m.pt", with_record(state, RECORD))
    read = torch.load(path, weights_only=True)
    assert isinstance(read, OrderedDict) and list(read) == list(state)
    assert record_of(read) == read_record(path) == RECORD
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    other.load_state_dict(read, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    # what torch itself keeps there
    assert read._metadata["1"] == state._metadata["1"] == {"version": 2}
    assert record_of(state) is None and record_of(other.state_dict()) is None


@pytest.mark.parametrize("content", [{"model": {}, "base": {"weights": "x"}}, {"progress": {"epoch": 1}}])
def test_any_other_checkpoint_gets_a_key(tmp_path, content):
    path = saved(tmp_path / "m.pt", with_record(content, RECORD))
    assert torch.load(path, weights_only=True) == {**content, "record": RECORD}
    assert read_record(path) == RECORD and "record" not in content


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, {"network": {}}, torch.zeros(2), [1], None])
def test_older_and_foreign_files_have_none(tmp_path, content):
    assert read_record(saved(tmp_path / "m.pt", content)) is None
    if isinstance(content, dict):
        assert with_record(content, None) is content


def test_the_format_of_old_torch_is_read(tmp_path):
    content = with_record(nn.Linear(1, 1).state_dict(), RECORD)
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert read_record(tmp_path / "m.pt") == RECORD


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pt does not exist"):
        read_record(tmp_path / "none.pt")
    (tmp_path / "m.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"m\.pt cannot be read"):
        read_record(tmp_path / "m.pt")


def test_what_first_weights_learnt_from_counts_and_images_without_labels_do_not():
    assert learnt_patients(RECORD) == {"a", "b", "c"}
    assert learnt_patients({**RECORD, "labelled": False}) == {"c"}
    assert learnt_patients(None) == set()


def test_a_record_stays_when_lora_is_merged(tmp_path):
    network = SamSegmenter("vit_test", 64, 3, lora={"rank": 2})
    path = saved(tmp_path / "m.pt", with_record(network.state_dict(), RECORD))
    load_weights(network, path, trained=True)
    assert list(read_state(path)[0]) == list(network.state_dict())
    merge_file(path, tmp_path / "merged.pt")
    assert read_record(tmp_path / "merged.pt") == RECORD
    load_weights(SamSegmenter("vit_test", 64, 3), tmp_path / "merged.pt", trained=True)
