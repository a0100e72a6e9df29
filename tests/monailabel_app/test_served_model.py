"""A bundle as the server holds it: which weights, which images, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
import torch
from fastapi import HTTPException
from lib.infers import PromptedTask
from lib.infers.prefetch import Prefetcher
from lib.model_versions import Version, Versions
from lib.served_model import COMPUTING, ServedModel, find_bundles

from medsaga.data import write_decathlon_phantoms
from medsaga.inferers import PromptedSlices
from tests.integration.bundles import BUNDLES, ROOT
from tests.integration.server import small_bundle


@pytest.fixture
def model(tmp_path):
    return ServedModel(small_bundle(tmp_path))


@pytest.fixture
def image(tmp_path):
    phantoms = write_decathlon_phantoms(tmp_path / "phantoms", cases=1, shape=(24, 32, 10))
    return next((phantoms / "imagesTr").iterdir())


def test_bundles_by_name_folder_and_all(tmp_path):
    bundles = ROOT / "bundles"
    assert [p.name for p in find_bundles("all", bundles)] == BUNDLES
    elsewhere = small_bundle(tmp_path, "spleen")
    assert find_bundles(f"hippocampus, {elsewhere}", bundles) == [(bundles / "hippocampus").resolve(), elsewhere]
    with pytest.raises(
        ValueError, match="--conf models liver: there is no such bundle. It must be all, one of amos, brain_tumour"
    ):
        find_bundles("hippocampus,liver", bundles)


def test_classes_dimension_and_weights_are_the_bundles():
    model = ServedModel(ROOT / "bundles" / "chest_xray")
    assert model.labels == {"right lung": 1, "left lung": 2, "heart": 3}
    assert (model.dimension, model.image_size, model.pretrained) == (2, 256, "lite_medsam")


def test_a_bundle_says_whether_its_images_are_volumes(tmp_path):
    bundle = small_bundle(tmp_path)
    assert ServedModel(bundle).dimension == 3
    path = bundle / "configs" / "inference.json"
    content = json.loads(path.read_text())
    del content["plane"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"inference.json: the key plane is missing"):
        ServedModel(bundle)


@pytest.mark.parametrize(("score", "answers"), [(0.8, "model.pt"), (0.6, "published"), (None, "model.pt")])
def test_prompts_are_answered_by_the_weights_that_follow_them_better(model, tmp_path, image, score, answers):
    shutil.copy(model.models_dir / "model.pt", tmp_path / "new.pt")
    known = {"prompt_score": score, "published_prompt_score": 0.7, "held_back": ["a"]}
    Versions(model.models_dir).add(tmp_path / "new.pt", Version(**known), serve=True)
    asked = {"image": str(image), "device": "cpu", "foreground": [[12, 16, 5]]}
    file = Versions(model.models_dir).served().file
    for name, weights in (
        (None, answers),
        ("best", answers),
        ("published", "published"),
        ("model.pt", "model.pt"),
        (file, file),
    ):
        assert model.prompt_weights(name) == weights
        _, params = PromptedTask(model)({**asked, "model_filename": name})
        assert params["weights"] == (file if weights == "model.pt" else weights)
    with pytest.raises(HTTPException, match="has no weights 'x.pt'"):
        PromptedTask(model)({**asked, "model_filename": "x.pt"})
    (model.models_dir / "model.pt").unlink()
    assert model.prompt_weights() == model.prompt_weights("best") == "published"


def test_without_published_weights_the_served_ones_answer(tmp_path):
    model = ServedModel(small_bundle(tmp_path, pretrained=False))
    shutil.copy(model.models_dir / "model.pt", tmp_path / "new.pt")
    known = {"prompt_score": 0.6, "published_prompt_score": 0.7, "held_back": ["a"]}
    Versions(model.models_dir).add(tmp_path / "new.pt", Version(**known), serve=True)
    assert model.prompt_weights() == "model.pt"


def test_new_weights_are_taken_up_and_old_ones_given_up(model):
    first = model.network()
    assert model.network() is first
    state = {key: value + 1 if value.is_floating_point() else value for key, value in first.state_dict().items()}
    time.sleep(0.01)
    torch.save(state, model.models_dir / "new")
    os.replace(model.models_dir / "new", model.models_dir / "model.pt")
    second = model.network()
    assert second is not first
    assert torch.equal(second.state_dict()["pixel_mean"], state["pixel_mean"])


def test_damaged_weights_are_refused(model):
    (model.models_dir / "model.pt").write_bytes(b"no checkpoint")
    with pytest.raises(HTTPException) as refused:
        model.network()
    assert refused.value.status_code == 500 and "cannot be read" in refused.value.detail


def test_what_to_do_without_a_trained_model(tmp_path):
    model = ServedModel(small_bundle(tmp_path, trained=False, pretrained=False))
    with pytest.raises(HTTPException, match="has no trained model yet"):
        model.network()
    with pytest.raises(HTTPException, match="has no weights to start from"):
        model.sam_network()


def test_an_image_is_prepared_once_until_its_file_changes(model, image, tmp_path):
    path = tmp_path / "image.nii.gz"
    shutil.copy(image, path)
    first = model.prepare(str(path))
    assert model.prepare(str(path)) is first and first.shape[0] == 1
    time.sleep(0.01)
    shutil.copy(image, path)
    assert model.prepare(str(path)) is not first


def test_an_image_that_cannot_be_read_is_named(model, image, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(image.read_bytes()[:500])
    with pytest.raises(HTTPException) as refused:
        model.prepare(str(broken))
    assert refused.value.status_code == 422 and refused.value.detail.startswith("broken.nii.gz cannot be segmented")


def test_slices_around_the_shown_one_are_embedded_ahead(model, image):
    slices = PromptedSlices(model.prepare(str(image)).as_tensor(), model.network(), model.embeddings, "case")
    prefetcher = Prefetcher()
    prefetcher.start(slices, shown=4)
    prefetcher._thread.join(30)
    assert all(("case", index) in model.embeddings for index in range(slices.depth))


def test_embedding_ahead_makes_way_for_a_request(model, image):
    slices = PromptedSlices(model.prepare(str(image)).as_tensor(), model.network(), model.embeddings, "case")
    prefetcher = Prefetcher()
    with COMPUTING:  # a request is at work
        prefetcher.start(slices, shown=4)
        time.sleep(0.8)
        prefetcher.pause()
    prefetcher._thread.join(30)
    assert len(model.embeddings) <= 1, "the slice that it had begun to wait for at most"
