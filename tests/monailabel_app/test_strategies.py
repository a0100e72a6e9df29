"""Strategies over a real datastore and small real networks, asked as MONAI Label's endpoint asks them."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from medsaga.active_learning import class_uncertainty, disagreement, image_embedding, mean_entropy, mixed
from medsaga.networks import SamSegmenter
from medsaga.transforms import fit_square

from ..integration.bundles import ROOT
from ..waiting import until

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from fastapi import HTTPException
from lib.private import Private
from lib.served_model import ServedModel
from lib.strategies import background, build_strategies, image_scores, slice_choice, start_background_scoring
from lib.strategies.holds import HOLD_SECONDS
from monailabel.config import settings
from monailabel.endpoints.activelearning import sample
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils.app import apps
from monailabel.utils.async_tasks.utils import background_processes

NAMES = ("random", "first", "entropy", "disagreement", "diversity", "representative", "mixed")
SIZE = 64


@functools.cache
def weights(classes, seed):
    torch.manual_seed(seed)
    return SamSegmenter("vit_test", SIZE, classes).state_dict()


def save_network(path, classes, seed):
    path.parent.mkdir(exist_ok=True)
    torch.save(weights(classes, seed), path)


@pytest.fixture
def bundle(tmp_path):
    """The hippocampus bundle with the test encoder and "published" weights, not trained."""
    folder = tmp_path / "bundles" / "hippocampus"
    shutil.copytree(ROOT / "bundles" / "hippocampus" / "configs", folder / "configs")
    save_network(tmp_path / "published.pt", 4, seed=0)
    for name in ("train", "inference"):
        path = folder / "configs" / f"{name}.json"
        config = json.loads(path.read_text())
        config["network_def"]["encoder"] = "vit_test"
        config["image_size"] = SIZE
        config["weights"] = str(tmp_path / "published.pt")
        path.write_text(json.dumps(config))
    return folder


@pytest.fixture
def studies(tmp_path):
    """Eight small volumes of different brightness and texture."""
    folder = tmp_path / "studies"
    folder.mkdir()
    random = np.random.RandomState(0)
    for i in range(8):
        image = random.rand(16, 20, 3) ** (0.3 + i) + np.linspace(0, i, 20)[None, :, None]
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), folder / f"case_{i}.nii.gz")
    return folder


class Site:
    """A server's app on a datastore; ``restart`` makes both anew from what is on disk."""

    def __init__(self, bundle, studies, monkeypatch):
        self.bundle, self.studies = bundle, studies
        for key, value in {
            "MONAI_LABEL_APP_DIR": "test",
            "MONAI_LABEL_STUDIES": str(studies),
            "MONAI_LABEL_DATASTORE_AUTO_RELOAD": False,
            "MONAI_LABEL_SESSIONS": False,
        }.items():
            monkeypatch.setattr(settings, key, value)
        self.restart()

    def restart(self):
        models = {"hippocampus": ServedModel(self.bundle)}
        self.scores = self.studies / ".medsaga"
        private = Private(self.studies)

        class App(MONAILabelApp):
            def init_strategies(self):
                return build_strategies(models, private)

        self.app = App("test", str(self.studies), {})
        apps[f"test{self.studies}"] = self.app
        self.model, self.datastore = models["hippocampus"], self.app.datastore()

    def train(self, seed=1):
        save_network(self.bundle / "models" / "model.pt", 3, seed)

    def ask(self, strategy, **params):
        return sample(strategy, params, "admin")  # the user where there is no login

    def label(self, *images):
        for image in images:
            self.datastore.save_label(image, str(self.studies / f"{image}.nii.gz"), "final", {})

    def prepared(self):
        """Preprocessed images by id."""
        return {i: self.model.prepare(self.datastore.get_image_uri(i)) for i in sorted(self.datastore.list_images())}


@pytest.fixture
def site(bundle, studies, monkeypatch):
    site = Site(bundle, studies, monkeypatch)
    yield site
    apps.clear()


def vectors(site):
    """Embeddings by the published weights, computed here."""
    network = SamSegmenter("vit_test", SIZE, 4, weights=site.bundle.parents[1] / "published.pt").eval()
    return {i: image_embedding(network.encode, x, SIZE) for i, x in site.prepared().items()}


# --- what is handed out, and to whom --------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("strategy", NAMES)
def test_every_image_once_and_then_none(site, strategy, trained):
    if trained:
        site.train()
    seen = []
    while answer := site.ask(strategy, client_id="ann"):
        assert answer["path"] == str((site.studies / f"{answer['id']}.nii.gz").resolve())
        seen.append(answer["id"])
        site.label(answer["id"])
    assert sorted(seen) == [f"case_{i}" for i in range(8)]


@pytest.mark.parametrize("strategy", NAMES)
def test_two_annotators_never_have_the_same_image(site, strategy):
    site.train()
    ann = site.ask(strategy, client_id="ann")["id"]
    assert site.ask(strategy, client_id="ann")["id"] == ann, "the one that is not labelled yet"
    others = {site.ask(other, client_id=f"client of {other}")["id"] for other in NAMES[1:]}
    assert len(others) == 6 and ann not in others
    site.restart()
    assert site.ask(strategy, client_id="ann")["id"] == ann
    site.label(ann)
    last = site.ask(strategy, client_id="ann")["id"]
    assert last not in {ann, *others}
    assert site.ask(strategy, client_id="late") == {}


@pytest.mark.parametrize("strategy", NAMES)
def test_an_image_that_cannot_be_read_is_passed_over(site, monkeypatch, caplog, strategy):
    """As a series of a DICOM store that is no regular volume, which is found out when it is fetched."""
    site.train()
    site.prepared()
    site.ask(strategy, client_id="ann")
    damaged = site.datastore.list_images()[:7]
    get = site.datastore.get_image_uri

    def get_image_uri(image):
        if image in damaged:
            raise HTTPException(422, f"Series {image} cannot be read. 2 slices are missing.")
        return get(image)

    monkeypatch.setattr(site.datastore, "get_image_uri", get_image_uri)
    (left,) = set(site.datastore.list_images()) - set(damaged)
    found = {site.ask(strategy, client_id=who).get("id") for who in ("ann", "bob", "cyd")}
    assert found <= {left, None} and left in found
    assert "is left out of the choice of images" in caplog.text and "2 slices are missing" in caplog.text


def test_a_hold_ends_after_an_hour(site):
    site.ask("first", client_id="ann")
    assert site.ask("first", client_id="bob")["id"] == "case_1"
    handed = {"first": {"ts": int(time.time()) - HOLD_SECONDS - 1, "client_id": "ann"}}
    site.datastore.update_image_info("case_0", {"strategy": handed})
    assert site.ask("first", client_id="cyd")["id"] == "case_0"
    assert site.ask("first", client_id="ann")["id"] == "case_2", "it is another's by now"


def test_another_strategy_is_a_way_out_of_an_image_one_cannot_label(site):
    assert site.ask("first", client_id="ann")["id"] == "case_0"
    other = site.ask("random", client_id="ann", seed=0)["id"]
    assert other != "case_0"
    assert site.ask("random", client_id="ann", seed=1)["id"] == other
    assert site.ask("first", client_id="ann")["id"] == "case_0"


def test_clients_without_an_id_get_the_least_recently_handed_out(site):
    site.label(*[f"case_{i}" for i in range(4, 8)])
    assert site.ask("first", client_id="ann")["id"] == "case_0"
    now = int(time.time())
    for age, expected in ((30, "case_1"), (20, "case_2"), (10, "case_3")):
        answer = site.ask("first")
        assert answer["id"] == expected
        site.datastore.update_image_info(expected, {"strategy": {"first": {"ts": now - age, "client_id": "admin"}}})
    answer = site.ask("entropy")
    assert answer["id"] == "case_1" and "longest ago" in answer["why"]
    assert site.ask("random")["id"] == "case_2"
    assert site.ask("first", client_id="bob") == {}, "someone may be at work on each"


def test_a_seed_fixes_the_order_whatever_others_have(site):
    def order(seed):
        images = site.datastore.list_images()
        strategy = site.app._strategies["random"]
        found = []
        while len(found) < len(images):
            free = sorted(set(images) - set(found))
            found.append(strategy.choose(free, [], {"seed": seed}, site.datastore)["id"])
        return found

    assert order(0) == order(0) != order(1)
    first, second = order(0)[:2]
    assert site.ask("random", client_id="ann", seed=0)["id"] == first
    assert site.ask("random", client_id="bob", seed=0)["id"] == second


# --- which one is chosen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy, score", [("entropy", mean_entropy), ("disagreement", disagreement)])
def test_the_most_uncertain_comes_first(site, strategy, score):
    site.train()
    network = site.model.network()
    expected = {i: score(network, image, SIZE) for i, image in site.prepared().items()}
    for image in sorted(expected, key=lambda i: -expected[i])[:3]:
        answer = site.ask(strategy)
        assert answer["id"] == image
        assert answer["score"] == pytest.approx(expected[image], rel=1e-4)
        assert answer["strategy_used"] == strategy
        site.label(image)


def test_diversity_starts_in_the_middle_and_goes_to_the_farthest(site):
    found = vectors(site)
    names = list(found)
    matrix = np.stack([found[i].double().numpy() for i in names])
    distances = cdist(matrix, matrix)
    first = names[distances.sum(axis=1).argmin()]
    assert site.ask("diversity", client_id="ann")["id"] == first
    # what ann is at counts as labelled for bob
    farthest = names[distances[names.index(first)].argmax()]
    assert site.ask("diversity", client_id="bob")["id"] == farthest


def test_representative_leaves_the_least_distance_to_labelled_images(site):
    found = vectors(site)
    names = list(found)
    matrix = np.stack([found[i].double().numpy() for i in names])
    distances = cdist(matrix, matrix)
    site.label("case_2")
    known = names.index("case_2")
    rest = [i for i in range(len(names)) if i != known]
    best = min(rest, key=lambda i: distances[:, [known, i]].min(axis=1).sum())
    assert site.ask("representative")["id"] == names[best]


def test_mixed_follows_its_rule(site):
    site.train()
    site.label("case_2", "case_5")
    network, found, prepared = site.model.network(), vectors(site), site.prepared()
    names = list(found)
    uncertainty = torch.tensor([mean_entropy(network, prepared[i], SIZE) for i in names])
    known = [names.index(i) for i in ("case_2", "case_5")]
    expected = names[mixed(torch.stack([found[i] for i in names]), uncertainty, known, 1)[0]]
    assert site.ask("mixed")["id"] == expected


@pytest.mark.parametrize("strategy", ["entropy", "disagreement", "mixed"])
def test_before_training_it_is_representative_and_says_so(site, strategy):
    answer = site.ask(strategy)
    assert answer["strategy_used"] == "representative"
    assert answer["why"] == f"{strategy} needs a trained hippocampus"
    fresh = {i: {k: v for k, v in site.datastore.get_image_info(i).items() if k != "strategy"} for i in [answer["id"]]}
    site.datastore.update_image_info(answer["id"], {**fresh[answer["id"]], "strategy": {}})
    assert site.ask("representative")["id"] == answer["id"]


def test_without_any_weights_it_is_chance_and_says_so(site):
    config = site.bundle / "configs" / "train.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "weights": None}))
    site.restart()
    answer = site.ask("mixed", seed=3)
    assert answer["strategy_used"] == "random" and "hippocampus" in answer["why"]
    site.train()
    assert site.ask("diversity")["strategy_used"] == "diversity", "by the trained network's embedding"


def test_embeddings_are_of_the_bundles_image_size(site):
    for name in ("train", "inference"):
        config = site.bundle / "configs" / f"{name}.json"
        content = json.loads(config.read_text())
        content["network_def"]["encoder"] = "vit_t"
        config.write_text(json.dumps({**content, "weights": "lite_medsam"}))
    site.restart()
    assert site.model.sam_network().image_size > SIZE, "for prompts it is larger"
    network = SamSegmenter("vit_t", SIZE, 4, weights="lite_medsam").eval()
    scores = site.app._strategies["diversity"].background.scores["hippocampus"]
    # a request and the background, both the first to need it
    together = threading.Barrier(2)

    def size_of_network(_):
        together.wait()
        return scores._network("embedding", scores.version("embedding"))[0].image_size

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(size_of_network, range(2))) == [SIZE, SIZE]
    assert scores.compute(["case_0"], "embedding", site.datastore, lambda: False)
    found = torch.tensor(scores.known(["case_0"], "embedding")["case_0"])
    torch.testing.assert_close(
        found, image_embedding(network.encode, site.prepared()["case_0"], SIZE), atol=1e-4, rtol=1e-3
    )


def test_published_weights_that_cannot_be_had_are_named_once(site, caplog):
    (site.bundle.parents[1] / "published.pt").unlink()
    assert site.ask("diversity")["strategy_used"] == "random"
    assert site.ask("diversity")["strategy_used"] == "random"
    assert len([r for r in caplog.records if "the embedding of images cannot be computed" in r.message]) == 1


def test_an_unreadable_image_is_named_and_left_out(site, caplog):
    site.train()
    (site.studies / "case_3.nii.gz").write_bytes(b"not an image")
    for strategy in ("entropy", "diversity", "mixed"):
        answer = site.ask(strategy)
        assert answer["strategy_used"] == strategy and answer["id"] != "case_3"
        assert answer["scored"] <= 7
    messages = [r.message for r in caplog.records if r.levelno == logging.WARNING and "case_3" in r.message]
    assert len(messages) == 2, "once for entropy and once for the embedding"


def test_bad_parameters_say_what_would_be_right(site):
    with pytest.raises(HTTPException) as caught:
        site.ask("diversity", model="spleen")
    assert caught.value.status_code == 404 and "hippocampus" in caught.value.detail
    with pytest.raises(HTTPException) as caught:
        site.ask("diversity", budget="soon")
    assert caught.value.status_code == 422 and "budget='soon'" in caught.value.detail


# --- scores: kept, bounded, in the background -----------------------------------------------------------------------


def test_scores_survive_a_restart_and_embeddings_a_training(site):
    site.train()
    asked = {strategy: site.app._strategies[strategy]({}, site.datastore) for strategy in ("entropy", "mixed")}
    site.restart()
    for strategy, before in asked.items():
        assert site.app._strategies[strategy]({"budget": 0}, site.datastore) == before
    site.train(seed=2)
    later = site.app._strategies["mixed"]({"budget": 0}, site.datastore)
    assert later["strategy_used"] == "representative" and "scored by the trained" in later["why"]
    assert site.app._strategies["entropy"]({}, site.datastore)["score"] != asked["entropy"]["score"]


def test_a_changed_image_is_scored_again(site):
    scores = site.app._strategies["diversity"].background.scores["hippocampus"]
    scores.compute(["case_0", "case_1"], "embedding", site.datastore, lambda: False)
    shutil.copy(site.studies / "case_7.nii.gz", site.studies / "case_0.nii.gz")
    assert set(scores.known(["case_0", "case_1"], "embedding")) == {"case_1"}


def test_a_damaged_score_file_is_computed_again(site):
    assert site.ask("diversity")["scored"] == 8
    for path in (site.scores / "hippocampus").glob("*.json"):
        path.write_text('{"scores": {"embed')
    (site.scores / "hippocampus" / "case_1.json").write_text("[]")
    site.restart()
    assert site.ask("diversity")["scored"] == 7, "all but the one that has been handed out"


def test_without_time_it_is_chance_among_the_unscored(site):
    site.train()
    start = time.monotonic()
    answer = site.ask("entropy", budget=0, seed=1)
    assert time.monotonic() - start < 1
    assert answer["strategy_used"] == "random"


def test_only_scored_images_compete(site):
    site.train()
    scores = site.app._strategies["entropy"].background.scores["hippocampus"]
    scores.compute(["case_4", "case_6"], "entropy", site.datastore, lambda: False)
    answer = site.ask("entropy", budget=0)
    assert answer["id"] in ("case_4", "case_6") and answer["scored"] == 2


def test_computing_gives_up_within_an_image(site):
    site.train()
    image = np.random.RandomState(0).rand(16, 20, 40).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), site.studies / "case_0.nii.gz")
    scores = site.app._strategies["entropy"].background.scores["hippocampus"]
    asked = []

    def give_up():
        asked.append(1)
        return len(asked) > 3  # before all, before the image, before its first and second batch

    assert not scores.compute(["case_0"], "entropy", site.datastore, give_up)
    assert len(asked) == 4 and scores.known(["case_0"], "entropy") == {}
    assert scores.compute(["case_0"], "entropy", site.datastore, lambda: False)


def test_of_a_large_store_a_part_competes(site, monkeypatch):
    monkeypatch.setattr(image_scores, "MAX_POOL", 3)
    assert site.ask("diversity")["scored"] == 3


def test_a_process_that_trains_computes_and_writes_nothing(site):
    threads = threading.active_count()
    build_strategies({"hippocampus": site.model}, Private(site.studies))
    assert threading.active_count() == threads
    assert not site.scores.exists()


def test_the_background_scores_all_and_again_after_training(site, monkeypatch):
    monkeypatch.setattr(background, "_LOOK_SECONDS", 0.05)
    site.label("case_1")
    scores = site.app._strategies["mixed"].background.scores["hippocampus"]
    images = site.datastore.list_images()
    stop = start_background_scoring(site.app._strategies, site.datastore)
    try:
        until(lambda: len(scores.known(images, "embedding")) == 8)
        assert scores.known(images, "entropy") == {}
        for seed in (1, 2):
            site.train(seed)
            until(lambda: len(scores.known(images, "entropy")) == 7)
            answer = site.ask("entropy", budget=0)
            assert answer["strategy_used"] == "entropy" and answer["scored"] >= 5
        assert scores.known(images, "disagreement") == {}, "takes long, and nobody has asked for it"
        site.ask("disagreement", budget=0)
        until(lambda: len(scores.known(images, "disagreement")) == 7)
    finally:
        start = time.monotonic()
        stop()
    assert time.monotonic() - start < 2
    assert not any(t.name == "scoring" and t.is_alive() for t in threading.enumerate())


def test_the_background_makes_way_for_a_request(site, monkeypatch):
    monkeypatch.setattr(background, "_LOOK_SECONDS", 0.05)
    worker = site.app._strategies["mixed"].background
    with worker.paused_for("hippocampus", ["embedding"]):
        worker.start(site.datastore)
        time.sleep(0.5)
        assert worker.scores["hippocampus"].known(site.datastore.list_images(), "embedding") == {}
    until(lambda: len(worker.scores["hippocampus"].known(site.datastore.list_images(), "embedding")) == 8)
    worker.stop()


def test_the_background_waits_while_a_model_trains(site, monkeypatch):
    monkeypatch.setattr(background, "_LOOK_SECONDS", 0.05)
    worker = site.app._strategies["mixed"].background
    monkeypatch.setitem(background_processes, "train", {"some task": object()})
    worker.start(site.datastore)
    time.sleep(0.5)
    assert worker.scores["hippocampus"].known(site.datastore.list_images(), "embedding") == {}
    background_processes["train"].clear()
    until(lambda: len(worker.scores["hippocampus"].known(site.datastore.list_images(), "embedding")) == 8)
    worker.stop()


def test_a_store_that_fails_for_a_while_does_not_end_the_background(site, monkeypatch, caplog):
    monkeypatch.setattr(background, "_LOOK_SECONDS", 0.05)
    store = site.datastore
    failures = iter([True, True])
    fetched = []

    def listed():
        if next(failures, False):
            raise ConnectionError("the PACS is being restarted")
        return store.get_unlabeled_images()

    def fetch(image):
        fetched.append(image)
        return store.get_image_uri(image)

    remote = SimpleNamespace(
        get_unlabeled_images=listed, get_labeled_images=store.get_labeled_images, get_image_uri=fetch
    )
    worker = site.app._strategies["mixed"].background
    worker.start(remote, unasked=False)
    time.sleep(0.3)
    assert not fetched, "nothing is fetched from a remote store before a strategy needs it"
    with worker.paused_for("hippocampus", ["embedding"]):
        pass
    until(lambda: len(worker.scores["hippocampus"].known(store.list_images(), "embedding")) == 8)
    worker.stop()
    assert "trying again" in caplog.text and sorted(fetched) == sorted(store.list_images())


# --- slices of the image that is handed out --------------------------------------------------------------------------


@pytest.fixture
def upside_down(studies):
    """case_0 with 12 slices whose file goes from top to bottom; bright ones at its end, in file order."""
    image = np.random.RandomState(1).rand(16, 20, 12)
    nib.save(nib.Nifti1Image(image.astype(np.float32), np.diag([1.0, 1, -1, 1])), studies / "case_0.nii.gz")
    return studies


def test_without_a_model_slices_are_evenly_spaced(upside_down, site):
    answer = site.ask("first", slices=3)
    assert answer["id"] == "case_0" and answer["slices"] == [1, 5, 9]  # 12 - 1 - (2, 6, 10)
    assert answer["slices_why"] == "evenly spaced"
    assert "slices" not in site.ask("first")


def test_slices_of_an_image_that_the_client_has(upside_down, site):
    site.ask("first", client_id="ann")
    answer = site.ask("random", client_id="bob", slices=3, image="case_0")
    assert answer["id"] == "case_0" and answer["slices"] == [1, 5, 9], "whoever has it"


@torch.no_grad()
def test_a_trained_model_names_the_slices_that_it_is_unsure_of(upside_down, site, monkeypatch):
    """Without the noise, which is more than what tells the slices of a fresh network apart."""
    monkeypatch.setattr(slice_choice, "_BETA", 1000.0)
    site.train()
    path = str(site.studies / "case_0.nii.gz")
    image = site.model.prepare(path).as_tensor()
    network = SamSegmenter("vit_test", SIZE, 3, weights=site.bundle / "models" / "model.pt").eval()
    scores = class_uncertainty(network(fit_square(image.permute(3, 0, 1, 2).float(), SIZE)))
    most = {11 - int(i) for i in scores[:, 1:].argmax(dim=0)}  # of each class, by number in the file
    found = [set(site.ask("first", client_id="ann", slices=n)["slices"]) for n in range(1, 13)]
    assert all(len(few) == n and few <= set(range(12)) for n, few in enumerate(found, start=1))
    assert all(few <= more for few, more in itertools.pairwise(found))
    assert len(most) == 2 and most == found[1] <= found[7], "each class has its turn"
    again = site.ask("first", client_id="ann", slices=4)
    assert set(again["slices"]) == found[3] and again["slices_why"] == "hippocampus is unsure of their classes"
    assert len(site.ask("first", client_id="ann", slices=1000)["slices"]) == 12


def test_slices_depend_on_the_images_name_and_not_on_its_folder(upside_down, site):
    site.train()
    path = site.studies / "case_0.nii.gz"
    (site.studies.parent / "elsewhere").mkdir()
    other = shutil.copy(path, site.studies.parent / "elsewhere" / path.name)
    choose = slice_choice.SliceChoice({"hippocampus": site.model})
    assert choose(str(path), {"slices": 5}) == choose(str(other), {"slices": 5})


def test_slices_across_the_file_have_no_numbers(studies, site):
    """Sagittal slices, by a file whose third axis goes to the left."""
    image = np.random.RandomState(1).rand(16, 20, 12).astype(np.float32)
    to_left = np.array([[0.0, 0, -1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(image, to_left), studies / "case_0.nii.gz")
    answer = site.ask("first", slices=2)
    assert answer["slices"] == [] and "third axis" in answer["slices_why"]


def test_slices_of_an_unknown_model_are_refused(site):
    with pytest.raises(HTTPException) as refused:
        site.ask("first", slices=2, model="liver")
    assert refused.value.status_code == 404
