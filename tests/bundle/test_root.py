from __future__ import annotations

from pathlib import Path

import pytest

from medsaga.bundle import find_bundle
from medsaga.bundle.root import bundle_folder


@pytest.fixture
def repository(tmp_path) -> Path:
    for name in ("spleen", "liver"):
        configs = tmp_path / "repository" / "bundles" / name / "configs"
        configs.mkdir(parents=True)
        (configs / "metadata.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "repository"


@pytest.mark.parametrize("start", [".", "bundles", "bundles/spleen", "bundles/spleen/configs", "bundles/liver"])
def test_found_from_the_repository_and_from_inside_it(repository, monkeypatch, start):
    monkeypatch.chdir(repository / start)
    found = Path(find_bundle("spleen"))
    assert found.resolve() == repository / "bundles" / "spleen"
    assert not found.is_absolute()


def test_bundle_copied_away_is_found_from_its_own_folder(repository, monkeypatch, tmp_path):
    (repository / "bundles" / "spleen").rename(tmp_path / "elsewhere" / "spleen")
    monkeypatch.chdir(tmp_path / "elsewhere" / "spleen")
    assert find_bundle("spleen") == "."


@pytest.mark.parametrize(("start", "name"), [("../elsewhere", "spleen"), (".", "brain"), ("bundles", "bundles")])
def test_otherwise_an_error_says_where_it_looked_and_what_to_set(repository, monkeypatch, start, name):
    monkeypatch.chdir(repository / start)
    with pytest.raises(FileNotFoundError, match=rf"'{name}' is not in .*--bundle_root"):
        find_bundle(name)


@pytest.mark.parametrize("words", [["{0}/train.json"], ["['{0}/train.json','{0}/evaluate.json']"], ["{0}/x.json", "y"]])
def test_the_config_that_was_given_leads_to_its_bundle_from_anywhere(repository, monkeypatch, tmp_path, words):
    (repository / "bundles" / "spleen").rename(tmp_path / "elsewhere" / "unpacked")
    monkeypatch.chdir(repository)
    given = [word.format(tmp_path / "elsewhere" / "unpacked" / "configs") for word in words]
    monkeypatch.setattr("sys.argv", ["monai.bundle", "run", "training", "--config_file", *given])
    assert Path(find_bundle("spleen")).resolve() == tmp_path / "elsewhere" / "unpacked"


def test_a_bundle_is_named_or_its_folder_given(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert bundle_folder("spleen").resolve() == bundle_folder(repository / "bundles" / "spleen")
    with pytest.raises(FileNotFoundError):
        bundle_folder(repository)


def test_folder_without_metadata_is_no_bundle(repository, monkeypatch):
    (repository / "bundles" / "spleen" / "configs" / "metadata.json").unlink()
    monkeypatch.chdir(repository)
    with pytest.raises(FileNotFoundError):
        find_bundle("spleen")
