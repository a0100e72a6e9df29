"""Retraining: what it learns from, what it replaces, and what it does when memory runs out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from lib.model_versions import Versions
from lib.served_model import ServedModel
from lib.stores import FolderStore
from lib.trainers import RetrainTask, comparing, prompt_scores, retrain
from lib.trainers.settings import training_settings

from medsaga.data import write_decathlon_phantoms
from medsaga.experiments import prompting
from medsaga.inferers import SliceBatchInferer
from medsaga.optimizers import GaLoreAdamW
from medsaga.records import read_record, with_record
from tests.integration.bundles import ROOT
from tests.integration.server import small_bundle

PHANTOMS = [f"phantom_00{n}" for n in range(5)]
REQUEST = {"device": "cpu", "max_epochs": 1}


@pytest.fixture
def bundle(tmp_path):
    return small_bundle(tmp_path, trained=False)


@pytest.fixture
def task(bundle):
    return RetrainTask(ServedModel(bundle))


@pytest.fixture
def labelled(tmp_path, task):
    """Five labelled phantoms in a datastore."""
    phantoms = write_decathlon_phantoms(tmp_path / "phantoms", cases=5, shape=(20, 24, 6))
    studies = tmp_path / "studies"
    shutil.copytree(phantoms / "imagesTr", studies)
    store = FolderStore(str(studies), models={task.model.name: task.model}, extensions=("*.nii.gz",))
    for file in sorted((phantoms / "labelsTr").iterdir()):
        store.save_label(file.name.removesuffix(".nii.gz"), str(file), "final", {})
    return store


def only(store: FolderStore, *images: str) -> FolderStore:
    """Leave the labels of these images alone."""
    for image in store.get_labeled_images():
        if image not in images:
            store.remove_label(image, "final")
    return store


def label_again(store: FolderStore, image: str) -> None:
    """Submit the true label of an image."""
    label = f"{store._datastore_path}/../phantoms/labelsTr/{image}.nii.gz"
    store.save_label(image, label, "final", {})


def test_weights_that_have_learnt_from_all_planes_go_on_with_all_and_are_compared_on_all(task, labelled, monkeypatch):
    model, runs = task.model, []
    weights = with_record(
        model.config.get_parsed_content("network_def").state_dict(),
        {"train": [], "learnt_before": [], "labelled": True, "plane": "all"},
    )
    model.models_dir.mkdir(exist_ok=True)
    torch.save(weights, model.models_dir / "model.pt")
    volume = SliceBatchInferer._volume
    monkeypatch.setattr(SliceBatchInferer, "_volume", lambda self, *of: runs.append(self.plane) or volume(self, *of))
    assert task.overrides("cpu", from_served=True)["plane"] == "all"
    task(REQUEST, labelled)
    record = read_record(model.models_dir / Versions(model.models_dir).list()[-1].file)
    assert record["plane"] == "all"
    # anew, in one plane: only the served ones are scored on all
    runs.clear()
    task({**REQUEST, "pretrained": False}, labelled)
    assert "plane" not in read_record(model.models_dir / Versions(model.models_dir).list()[-1].file)
    assert set(runs) == {"auto"}


def test_a_first_model_is_served_and_the_next_has_to_be_as_good(task, labelled):
    first = task(REQUEST, only(labelled, "phantom_000", "phantom_001"))
    assert first["served"] and first["score"] is None, "nothing was held back"
    assert Versions(task.model.models_dir).served().trained_on == ["phantom_000.nii.gz", "phantom_001.nii.gz"]
    weights = (task.model.models_dir / "model.pt").read_bytes()

    label_again(labelled, "phantom_002")
    second = task(REQUEST, labelled)
    made = Versions(task.model.models_dir).list()[-1]
    assert made.score == second["score"] and made.served_score == second["served_score"]
    assert second["served"] == (second["score"] >= second["served_score"])
    assert ((task.model.models_dir / "model.pt").read_bytes() == weights) != second["served"]
    stats = task.stats()
    assert stats["message"].startswith("model_v2.pt: ") and stats["total_time"]
    served_score = second["score"] if second["served"] else second["served_score"]
    assert stats["best_metric"] == pytest.approx(served_score)
    assert stats["epoch"] == stats["total_epochs"] == 1


def test_how_well_prompts_are_followed_is_measured(task, labelled, caplog):
    """Of the new and the published weights; a training is not lost where those cannot be had."""
    task(REQUEST, only(labelled, "phantom_000", "phantom_001"))
    label_again(labelled, "phantom_002")
    task(REQUEST, labelled)
    first, second = Versions(task.model.models_dir).list()
    assert first.held_back == [] and second.held_back == ["phantom_002.nii.gz"]
    for version in (first, second):
        assert 0 < version.prompt_score <= 1 and 0 < version.published_prompt_score <= 1
    assert first.published_prompt_score != second.published_prompt_score, "other labels"
    assert "prompts are answered by" in first.note
    (task.model.path.parent / "hippocampus_sam.pt").unlink()
    task.model.free_memory()
    task(REQUEST, labelled)
    third = Versions(task.model.models_dir).list()[-1]
    assert third.prompt_score is None and third.score is not None
    assert "it cannot be measured how well its weights follow prompts" in caplog.text


# --- methods ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def methods(tmp_path):
    """The overlays beside the bundle, as in the repository."""
    (tmp_path / "methods").symlink_to(ROOT / "bundles" / "methods")


@pytest.mark.usefixtures("methods")
def test_images_without_a_label_are_learnt_from(task, labelled):
    store = only(labelled, "phantom_000", "phantom_001")
    made = task({**REQUEST, "method": "with unlabelled"}, store)
    assert made["why"].startswith("with unlabelled: ")
    record = read_record(task.model.models_dir / "model.pt")
    assert record["train"] == ["phantom_000", "phantom_001"]
    assert record["unlabelled"] == ["phantom_002", "phantom_003", "phantom_004"]
    for image in PHANTOMS:
        label_again(labelled, image)
    with pytest.raises(ValueError, match="every image has a label"):
        task({**REQUEST, "method": "with unlabelled"}, labelled)


@pytest.mark.usefixtures("methods")
def test_the_best_of_all_methods_is_served(task, labelled, caplog):
    few = task({**REQUEST, "method": ["choose"]}, only(labelled, "phantom_000", "phantom_001"))
    assert "methods" not in few and "There are too few labels to hold any back and compare methods" in caplog.text
    label_again(labelled, "phantom_002")
    made = task({**REQUEST, "method": "choose"}, labelled)
    assert list(made["methods"]) == ["MedSAGa", "with unlabelled", "full AdamW"]
    first, *three = Versions(task.model.models_dir).list()
    assert [version.score for version in three] == list(made["methods"].values())
    assert made["score"] == max(made["methods"].values())
    best = max([three[0].served_score, *made["methods"].values()])
    served = Versions(task.model.models_dir).served()
    assert (served.score if served.file != first.file else three[0].served_score) == best
    message = task.stats()["message"]
    assert all(f"{name} {score:.3f}" in message for name, score in made["methods"].items())
    assert made["version"] in message


def test_a_method_whose_file_is_not_there_is_named(task, labelled):
    with pytest.raises(FileNotFoundError, match="'full AdamW' needs full.json in a folder 'methods' beside the bundle"):
        task({**REQUEST, "method": "full AdamW"}, labelled)


@pytest.mark.parametrize("cases", [1, 3, 12])
def test_few_objects_of_many_cases_are_prompted(task, labelled, monkeypatch, cases):
    """At most eight, by turns of each class, and the same for both networks."""
    files = [{"image": labelled.get_image_uri(i), "label": labelled.get_label_uri(i, "final")} for i in PHANTOMS]
    several = [files[n % len(files)] for n in range(cases)]
    asked = []

    def noted(network, case, name, names, at, depth, head, **only):
        assert (at, head) in [((1, 3), "classes"), ((1, 3), "sam")]
        numbers = case["label"].unique().tolist()[1:]
        asked.append(numbers)
        objects = prompting.prompted(network, case, name, names, at, depth, head, **only)
        assert all(set(thing.masks) == {"box", "1 click", "3 clicks"} for thing in objects), "what is asked for alone"
        return objects

    monkeypatch.setattr(prompt_scores, "prompted", noted)
    parser = task.parsed({})
    network = parser.get_parsed_content("network")
    scores = prompt_scores.prompt_scores(network, task.model, several, parser)
    mine = asked[::2]
    assert mine == asked[1::2], "both on the same objects"
    assert sum(map(len, mine)) == min(8, 2 * cases) and len(mine) == min(8, cases)
    assert {number for numbers in mine for number in numbers} == {1, 2}
    assert all(0 <= score <= 1 for score in scores)
    assert prompt_scores.prompt_scores(network, task.model, [], parser) == (None, None)


def test_what_is_held_back_is_not_learnt_from(task, labelled):
    """The label held back is of noise: a model that had learnt from it would differ from one that had not."""
    task(REQUEST, only(labelled, "phantom_000", "phantom_001"))
    held = Versions(task.model.models_dir)
    phantoms = labelled._datastore_path
    label = nib.load(f"{phantoms}/../phantoms/labelsTr/phantom_002.nii.gz")
    labelled.save_label("phantom_002", label.get_filename(), "final", {})
    task(REQUEST, labelled)
    second = held.list()[-1]
    assert second.held_back == ["phantom_002.nii.gz"], "the one that the served model has not learnt from"
    assert second.trained_on == ["phantom_000.nii.gz", "phantom_001.nii.gz"]
    noise = np.random.default_rng(0).integers(0, 3, label.shape).astype(np.uint8)
    nib.save(nib.Nifti1Image(noise, label.affine), f"{phantoms}/labels/final/phantom_002.nii.gz")
    before = torch.load(held.models_dir / second.file, weights_only=True)
    held.serve("model_v1.pt")
    task(REQUEST, labelled)
    after = torch.load(held.models_dir / held.list()[-1].file, weights_only=True)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_label_that_cannot_be_learnt_from_is_named_and_left_out(task, labelled, caplog):
    store = only(labelled, "phantom_000", "phantom_001")
    path = store.get_label_uri("phantom_001", "final")
    image = nib.load(path)
    five = np.asarray(image.dataobj).copy()
    five[0, 0, 0] = 5
    nib.save(nib.Nifti1Image(five, image.affine), path)
    made = task(REQUEST, store)
    assert Versions(task.model.models_dir).served().trained_on == ["phantom_000.nii.gz"] and made["served"]
    assert "phantom_001.nii.gz: left out of training" in caplog.text
    assert "are outside the 3 classes" in caplog.text


def test_what_a_model_has_learnt_from_goes_with_its_weights(task, labelled):
    task(REQUEST, only(labelled, "phantom_000", "phantom_001"))
    labelled.remove_label("phantom_001", "final")
    task({**REQUEST, "pretrained": False}, labelled)
    task(REQUEST, labelled)
    first, anew, further = Versions(task.model.models_dir).list()
    assert anew.trained_on == ["phantom_000.nii.gz"], "begun from published weights"
    assert further.trained_on == first.trained_on == ["phantom_000.nii.gz", "phantom_001.nii.gz"], (
        "begun from the first"
    )


def test_labels_that_the_served_weights_know_are_not_scored(task, labelled):
    """They were trained by the bundle on the command line: only the record in them says on which patients."""
    task(REQUEST, only(labelled, "phantom_000"))
    served = task.model.models_dir / "model.pt"
    weights = torch.load(served, weights_only=True)
    known = {"train": ["phantom_001", "phantom_002"], "labelled": True, "learnt_before": ["phantom_000"]}
    torch.save(with_record(weights, known), served)
    for image in ("phantom_001", "phantom_002"):
        label_again(labelled, image)
    answer = task(REQUEST, labelled)
    assert not answer["served"] and answer["score"] is None and "there is no label to compare it with" in answer["why"]
    label_again(labelled, "phantom_003")
    answer = task(REQUEST, labelled)
    assert Versions(task.model.models_dir).list()[-1].held_back == ["phantom_003.nii.gz"]
    assert answer["score"] is not None and answer["served_score"] is not None
    made = read_record(task.model.models_dir / answer["version"])
    assert made["train"] == ["phantom_000", "phantom_001", "phantom_002"] and made["test"] == ["phantom_003"]
    assert made["learnt_before"] == ["phantom_000", "phantom_001", "phantom_002"]


def test_a_score_of_nothing_replaces_nothing(task, labelled):
    """The label held back is all background: there is no Dice, and the answer to clients stays valid JSON."""
    task(REQUEST, only(labelled, "phantom_000", "phantom_001"))
    label_again(labelled, "phantom_002")
    path = labelled.get_label_uri("phantom_002", "final")
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    answer = task(REQUEST, labelled)
    assert Versions(task.model.models_dir).list()[-1].held_back == ["phantom_002.nii.gz"]
    assert answer["score"] is None and not answer["served"]
    json.dumps(task.stats(), allow_nan=False)


def test_without_a_label_nothing_is_made(task, labelled):
    with pytest.raises(ValueError, match="no usable label yet"):
        task(REQUEST, only(labelled))
    assert not (task.model.models_dir / "model.pt").exists()


def test_labels_of_another_models_classes_are_not_taken(task, labelled):
    store = only(labelled, "phantom_000", "phantom_001")
    store.update_label_info("phantom_001", "final", {"models": ["spleen"]})
    task(REQUEST, store)
    assert Versions(task.model.models_dir).served().trained_on == ["phantom_000.nii.gz"]


def test_running_out_of_memory_tries_less(task, labelled, monkeypatch, caplog):
    """The real training, after as many failures as a GPU would have raised."""
    tried, train = [], task._train

    def small_gpu(overrides, *arguments):
        tried.append({key: overrides.get(key) for key in ("checkpointing", "batch_size")})
        if overrides.get("checkpointing") != "least":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return train(overrides, *arguments)

    monkeypatch.setattr(task, "_train", small_gpu)
    assert task(REQUEST, only(labelled, "phantom_000"))["served"]
    assert [t["checkpointing"] for t in tried] == [None, "blocks", "least"]
    assert "the GPU has not enough memory" in caplog.text


def test_never_enough_memory(task, labelled, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(task, "_train", none)
    with pytest.raises(torch.OutOfMemoryError):
        task(REQUEST, only(labelled, "phantom_000"))
    assert not (task.model.models_dir / "model.pt").exists()


@pytest.mark.parametrize(
    ("score", "served_score", "serve"),
    [
        (0.8, 0.7, True),
        (0.7, 0.7, True),
        (0.699, 0.7, False),
        (None, None, False),
        (float("nan"), 0.7, False),
    ],
)
def test_only_what_is_not_worse_is_served(score, served_score, serve):
    verdict, why = comparing.verdict(score, served_score)
    assert verdict == serve and why


@pytest.mark.parametrize("least, serve", [(None, False), ("0.5", False), ("0", True)])
@pytest.mark.parametrize("labels", [2, 3])
def test_a_first_model_that_is_not_worth_correcting_is_kept_and_not_served(
    task, labelled, monkeypatch, labels, least, serve
):
    """With a rate of nothing the fresh class head is as good as noise, on labels held back and on its own."""
    if least is None:
        monkeypatch.delenv("MEDSAGA_FIRST_DICE", raising=False)
    else:
        monkeypatch.setenv("MEDSAGA_FIRST_DICE", least)
    monkeypatch.setattr("lib.trainers.settings._TABLE", ((1, 80, 10, 0, 1.0), (3, 80, 10, 1, 1.0)))
    path = task.model.path / "configs" / "train.json"
    config = json.loads(path.read_text())
    config["lr"] = config["encoder_lr"] = 0.0
    path.write_text(json.dumps(config))
    result = RetrainTask(task.model)(REQUEST, only(labelled, *[f"phantom_00{n}" for n in range(labels)]))
    versions = Versions(task.model.models_dir)
    assert result["served"] == serve == versions.served_file.is_file()
    assert (result["score"] is None) == (labels == 2), "what it has learnt from is no score"
    assert [v.file for v in versions.list()] == ["model_v1.pt"]
    assert ("MEDSAGA_FIRST_DICE" in result["why"]) != serve and "Dice 0." in result["why"]
    assert task.model.trained == serve


def test_the_bundles_own_config_is_what_trains(task, labelled):
    """A key of train.json has its effect: with no learning rate the weights stay those it started from."""
    path = task.model.path / "configs" / "train.json"
    config = json.loads(path.read_text())
    config["lr"] = config["encoder_lr"] = 0.0
    path.write_text(json.dumps(config))
    still = RetrainTask(task.model)
    still(REQUEST, only(labelled, "phantom_000"))
    first = torch.load(task.model.models_dir / "model_v1.pt", weights_only=True)
    still(REQUEST, labelled)
    second = torch.load(task.model.models_dir / "model_v2.pt", weights_only=True)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("pretrained", "share"), [(True, 0.25), (False, 1.0)])
def test_rates_fall_where_training_goes_on_from_what_has_learnt_much(task, labelled, monkeypatch, pretrained, share):
    task(REQUEST, only(labelled, "phantom_000"))
    rates = []

    def step(self, *args, **kwargs):
        rates.append([group["initial_lr"] for group in self.param_groups])

    def settings(labels, replaces, goes_on):
        return replace(training_settings(labels, replaces, goes_on), rate=0.25 if goes_on else 1.0)

    monkeypatch.setattr(retrain, "training_settings", settings)
    monkeypatch.setattr(GaLoreAdamW, "step", step)
    task({**REQUEST, "pretrained": pretrained}, labelled)
    config = task.bundle_config
    assert sorted(set(rates[0])) == pytest.approx(sorted([share * config["lr"], share * config["encoder_lr"]]))


def test_a_label_with_few_classes_counts_where_the_bundle_wants_slices_with_many(task, labelled):
    path = task.model.path / "configs" / "train.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "min_classes": 5}))
    answer = RetrainTask(task.model)(REQUEST, only(labelled, "phantom_000"))
    assert answer["served"]


def test_only_slices_that_an_annotator_says_are_labelled_are_learnt_from(task, labelled):
    only(labelled, "phantom_000", "phantom_001")
    label = f"{labelled._datastore_path}/../phantoms/labelsTr/phantom_001.nii.gz"
    labelled.save_label("phantom_001", label, "final", {"labelled_slices": [1, 4]})
    task(REQUEST, labelled)
    slices = {entry["case"]: entry["slices"] for entry in read_record(task.model.models_dir / "model.pt")["slices"]}
    assert slices["phantom_001"] == [1, 4] and len(slices["phantom_000"]) > 4
