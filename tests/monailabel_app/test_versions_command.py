"""The command that lists versions and brings one back."""

import pytest
from monailabel_app.lib.model_versions import Version, Versions
from monailabel_app.versions import main


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    versions = Versions(tmp_path / "models")
    for content, score in (("one", 0.8), ("another", 0.9)):
        (tmp_path / "new.pt").write_text(content)
        versions.add(tmp_path / "new.pt", Version(file="", made="2026-01-01", score=score, trained_on=["a"]), True)
    return tmp_path


def test_the_served_one_is_marked_and_brought_back(bundle, capsys):
    assert main([str(bundle)]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert "model_v1.pt" in first and "0.800" in first and "→" not in first
    assert "model_v2.pt" in second and "0.900" in second and "→" in second
    assert main([str(bundle), "--serve", "model_v1.pt"]) == 0
    assert "→ model_v1.pt" in capsys.readouterr().out
    assert (bundle / "models" / "model.pt").read_text() == "one"


def test_published_weights_can_be_gone_back_to(bundle, capsys):
    (bundle / "models" / "model.pt").write_text("put there by hand")
    assert main([str(bundle), "--serve", "published"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "→ published" in lines[-1] and not (bundle / "models" / "model.pt").exists()
    assert "found in models/" in lines[-2], "what was served has become a version"
    assert main([str(bundle), "--serve", "model_v3.pt"]) == 0
    assert (bundle / "models" / "model.pt").read_text() == "put there by hand"


def test_what_is_not_there_is_said(bundle, tmp_path, capsys):
    assert main([str(bundle), "--serve", "model_v7.pt"]) == 1
    assert "only published, model_v1.pt, model_v2.pt" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 1
    assert "is not a bundle" in capsys.readouterr().err


def test_who_answers_prompts_is_said(bundle, capsys):
    versions = Versions(bundle / "models")
    for content, score in (("worse", 0.6), ("better", 0.75)):
        (bundle / "new.pt").write_text(content)
        known = {"prompt_score": score, "published_prompt_score": 0.7, "held_back": ["a"]}
        versions.add(bundle / "new.pt", Version(made="2026-01-01", score=0.9, **known), True)
        assert main([str(bundle)]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert ("published: " in last and "answer prompts" in last) == (content == "worse")
    assert "0.750" in last and "0.700" in last
