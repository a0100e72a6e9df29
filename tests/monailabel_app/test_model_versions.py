"""Weights that are served, kept and brought back."""

import json
import os

import pytest
from lib.model_versions import Version, Versions


@pytest.fixture
def versions(tmp_path):
    return Versions(tmp_path / "models")


def add(versions, content, serve=True, **known):
    candidate = versions.models_dir.parent / "candidate.pt"
    candidate.write_text(content)
    os.utime(candidate, ns=(add.clock, add.clock))
    add.clock += 10**9
    return versions.add(candidate, Version(file="", made="2026-01-01", **known), serve)


add.clock = 10**18


def test_the_first_is_served_and_kept(versions):
    made = add(versions, "one", score=0.8, trained_on=["a"])
    assert made.file == "model_v1.pt" == versions.served().file
    assert versions.served_file.read_text() == "one"
    assert versions.served().score == 0.8 and versions.served().trained_on == ["a"]


def test_one_that_is_not_served_is_kept(versions):
    add(versions, "one")
    add(versions, "two", serve=False, score=0.1)
    assert versions.served_file.read_text() == "one" and versions.served().file == "model_v1.pt"
    assert [v.file for v in versions.list()] == ["model_v1.pt", "model_v2.pt"]


def test_bringing_one_back(versions):
    add(versions, "one")
    add(versions, "two")
    assert versions.serve("model_v1.pt").file == "model_v1.pt"
    assert versions.served_file.read_text() == "one" and versions.served().file == "model_v1.pt"
    assert add(versions, "three").file == "model_v3.pt", "numbers are not given twice"


def test_weights_put_there_by_other_means_become_a_version(versions):
    versions.served_file.write_text("trained on the command line")
    assert versions.served() is None
    add(versions, "one")
    assert [v.note for v in versions.list()] == ["found in models/", ""]
    versions.serve("model_v1.pt")
    assert versions.served_file.read_text() == "trained on the command line"


def test_an_unknown_version(versions):
    add(versions, "one")
    with pytest.raises(ValueError, match="no version '../x.pt', only published, model_v1.pt"):
        versions.serve("../x.pt")


def test_writing_over_the_served_file_leaves_the_versions(versions):
    add(versions, "one")
    versions.served_file.write_text("copied over it")
    versions.serve("model_v1.pt")
    assert versions.served_file.read_text() == "one"


def test_a_failure_leaves_what_was_served(versions, monkeypatch):
    add(versions, "one")
    replace = os.replace

    def full(source, target):
        if str(target).endswith("versions.json"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        add(versions, "two")
    monkeypatch.undo()
    assert versions.served_file.read_text() == "one" and [v.file for v in versions.list()] == ["model_v1.pt"]
    assert not [p for p in versions.models_dir.iterdir() if p.name.endswith(".writing") and "model" in p.name]


@pytest.mark.parametrize(
    ("score", "published", "held_back", "follows"),
    [
        (0.8, 0.7, ["a"], True),
        (0.7, 0.7, ["a"], True),
        (0.69, 0.7, ["a"], False),
        (0.74, 0.7, [], False),
        (0.76, 0.7, [], True),
        (None, 0.7, ["a"], True),
        (0.1, None, ["a"], True),
    ],
)
def test_which_weights_answer_prompts(versions, score, published, held_back, follows):
    """On labels that it has learnt from it has to be clearly better; what was not measured answers as before."""
    add(versions, "one", prompt_score=score, published_prompt_score=published, held_back=held_back)
    assert versions.served().follows_prompts == follows


def test_lists_of_before_prompts_were_measured_are_read(versions):
    add(versions, "one", score=0.8)
    index = versions.models_dir / "versions.json"
    entries = json.loads(index.read_text())
    for entry in entries:
        del entry["prompt_score"], entry["published_prompt_score"]
    index.write_text(json.dumps(entries))
    assert versions.served().score == 0.8 and versions.served().prompt_score is None
    add(versions, "two", prompt_score=0.5)
    assert [v.prompt_score for v in versions.list()] == [None, 0.5]
