"""Training on the labels that annotators have submitted, with the bundle's own config."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list, name_to_device, strtobool

from lib.model_versions import Version, Versions
from lib.names import chosen
from lib.served_model import ServedModel
from lib.trainers.comparing import compared
from lib.trainers.methods import CHOOSE, SERVED_METHODS, WITH_UNLABELLED, methods_to_train, overlays_of
from lib.trainers.needed import what_more_labels_bring
from lib.trainers.settings import TrainingSettings, checksum, hold_back, training_settings
from lib.trainers.stats import StatsFile, read_stats
from medsaga.bundle.errors import root_cause
from medsaga.bundle.literals import literals
from medsaga.data.case import patient_of
from medsaga.files import write_json
from medsaga.records import learnt_patients, read_record, trained_plane

__all__ = ["RetrainTask"]

logger = logging.getLogger(__name__)

Case = dict[str, Any]

_MOST_UNLABELLED = 50  # images that are learnt from without a label: of a DICOM store each is fetched

# tried one after the other when a GPU's memory is not enough (docs/checkpointing.md); the first is the bundle's own
_LEANER: tuple[dict[str, Any], ...] = (
    {},
    {"checkpointing": "blocks"},
    {"checkpointing": "least"},
    {"checkpointing": "least", "offload": True, "batch_size": 1},
)


class RetrainTask(BundleTrainTask):
    """MONAI Label's task for a bundle's training, made for few labels and for a model that is in use.

    It starts from the served weights, or from published ones. The result is scored on labels held back from it, next to
    the served model on the same labels, and takes its place only if it is not worse. Every result is kept as a version.
    Until then nothing of the served model is touched, so a training may be stopped or killed at any time.

    Request parameters: ``device``; ``pretrained``: start from the served weights (else from published ones);
    ``max_epochs``: 0 chooses by the number of labels; ``method``: how to train, or ``choose``, which tries all methods
    from published weights, each a version, and serves the one that is best on the labels held back.

    Args:
        model: the bundle.
    """

    def __init__(self, model: ServedModel) -> None:
        super().__init__(str(model.path), {}, load_strict=True)
        self.model = model
        self.work_dir = model.path / "output" / "monailabel"

    def config(self) -> dict[str, Any]:
        methods = [*SERVED_METHODS, CHOOSE]
        return {"device": device_list(), "pretrained": True, "max_epochs": 0, "method": methods}

    def stats(self) -> dict[str, Any]:
        return read_stats(self.work_dir / "stats.json")

    def labelled(self, datastore: Datastore) -> list[str]:
        """Images whose final label is of this model's classes, as far as the label's information says."""
        return list(self._label_infos(datastore))

    def _label_infos(self, datastore: Datastore) -> dict[str, dict[str, Any]]:
        """Information of the final labels that may be of this model's classes, by image."""
        name, images = self.model.name, datastore.get_labeled_images()
        infos = {image: datastore.get_label_info(image, DefaultLabelTag.FINAL) or {} for image in images}
        return {image: info for image, info in infos.items() if name in info.get("models", [name])}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """
        Returns:
            The version made, and whether it is served now; of several methods the best.

        Raises:
            ValueError: no usable label, or no image without one for a method that needs some.
            torch.OutOfMemoryError: also the leanest setting needs more memory than there is.
        """
        request = {**self.config(), **request}
        device, method = name_to_device(chosen(request, "device")), chosen(request, "method")
        overrides = self.overrides(device, strtobool(request["pretrained"]) and method != CHOOSE)
        cases = self.usable(self._fetch_datalist(request, datastore), overrides)
        versions = Versions(self.model.models_dir)
        served = versions.served()
        learnt = self.learnt(cases, served, overrides.get("weights", self.bundle_config["weights"]))
        settings = training_settings(len(cases), replaces=self.model.trained, goes_on="weights" in overrides)
        held_back = hold_back(list(cases), settings.held_back, learnt, served.held_back if served else [])
        train = [case for name, case in cases.items() if name not in held_back]
        held = [cases[name] for name in held_back]
        overrides["train#dataset#data"] = train
        # without labels held back, a first model is scored on its training labels; if it fails even there, it is not
        # served
        overrides["validate#dataset#data"] = held if held or self.model.trained else train
        # instead of the bundle's own split, whose data folder is not here; the record of the new weights names these
        # cases
        overrides["parts"] = {"train": train, "validation": [], "test": held}
        logger.info(
            "%s: training on %d labels, %d held back (%s)", self.model.name, len(train), len(held_back), held_back
        )

        unlabelled = self._unlabelled(datastore, overrides) if method in (WITH_UNLABELLED, CHOOSE) else []
        # before the first training, so that a missing file is not found only after it
        methods = {name: overlays_of(name, self.model.path) for name in methods_to_train(method, held_back, unlabelled)}
        epochs, results = int(request["max_epochs"] or 0), {}
        for name, overlays in methods.items():
            more = {"unlabelled#dataset#data": unlabelled} if name == WITH_UNLABELLED else {}
            results[name] = self._in_memory({**overrides, **more}, name, overlays, settings, epochs, cases, held_back)
        if len(results) == 1:
            return next(iter(results.values()))
        best = max(results, key=lambda name: results[name]["score"])
        scores = ", ".join(f"{name} {result['score']:.3f}" for name, result in results.items())
        stats = self.work_dir / "stats.json"
        message = f"Dice on held-back labels: {scores}. Of {best}: {results[best]['version']}: {results[best]['why']}"
        write_json(stats, {**read_stats(stats), "message": message})
        logger.info("%s: %s", self.model.name, message)
        return {**results[best], "methods": {name: result["score"] for name, result in results.items()}}

    def _in_memory(self, overrides: dict[str, Any], *training: Any) -> dict[str, Any]:
        """Train, with less memory where a GPU has not enough."""
        for leaner in _LEANER:
            try:
                return self._train({**overrides, **leaner}, *training)
            except torch.OutOfMemoryError as err:
                failure = err
            gc.collect()
            torch.cuda.empty_cache()
            logger.warning(
                "%s: the GPU has not enough memory with %s, so less is tried", self.model.name, leaner or "its settings"
            )
        raise failure

    def _unlabelled(self, datastore: Datastore, overrides: dict[str, Any]) -> list[Case]:
        """Images that nobody has labelled (only some, if there are many), preprocessed into the slice cache."""
        overlays, cases = overlays_of(WITH_UNLABELLED, self.model.path), []

        def take(image: str) -> None:
            case = {"image": datastore.get_image_uri(image)}
            self._dataset([case], overrides, overlays, "unlabelled")
            cases.append(case)

        for image in sorted(datastore.get_unlabeled_images(), key=checksum):
            if len(cases) < _MOST_UNLABELLED:
                _or_left_out(partial(take, image), image)
        return cases

    def overrides(self, device: str, from_served: bool) -> dict[str, Any]:
        """What differs from the bundle's own training."""
        overrides: dict[str, Any] = {
            "bundle_root": str(self.model.path),
            "device": device,
            "output_dir": str(self.work_dir),
            "model_path": str(self.work_dir / "candidate.pt"),
            "num_slices": None,
            # a bundle may want slices with many classes, which a single label need not have
            "min_classes": min(1, self.bundle_config["min_classes"]),
            "num_workers": 0,
            "resume": False,
            "patience": None,
        }
        if from_served and self.model.trained:
            overrides["weights"] = str(self.model.checkpoint())
            if plane := trained_plane(self.model.checkpoint()):
                overrides["plane"] = plane
        return overrides

    def _fetch_datalist(self, request: dict[str, Any], datastore: Datastore) -> list[Case]:
        """Images and their final labels, without those that were submitted for other models' classes.

        MONAI Label's own reads labels as JSON where a model's name has "detection" in it.
        """
        infos = {datastore.get_image_uri(image): info for image, info in self._label_infos(datastore).items()}
        cases = [{"image": case["image"], "label": case["label"]} for case in datastore.datalist()]
        cases = [case for case in cases if case["image"] in infos]
        for case in cases:
            if slices := infos[case["image"]].get("labelled_slices"):
                case["labelled_slices"] = slices
        return cases

    def learnt(self, cases: dict[str, Case], served: Version | None, start: str | None) -> list[str]:
        """Which of the cases the served weights, or those to start from, have learnt from: by the served version, and
        by the records in the files."""
        files = {str(self.model.models_dir / "model.pt"), str(start)}
        patients = {name for file in files if Path(file).is_file() for name in learnt_patients(read_record(file))}
        known = set(served.trained_on if served else [])
        return [name for name, case in cases.items() if name in known or patient_of(case) in patients]

    def usable(self, datalist: list[Case], overrides: dict[str, Any]) -> dict[str, Case]:
        """Labelled cases by name, preprocessed into the slice cache; invalid ones are reported by name."""
        cases = {}

        def take(case: Case) -> None:
            self._dataset([case], overrides)
            cases[Path(case["image"]).name] = case

        for case in sorted(datalist, key=lambda c: c["image"]):
            _or_left_out(partial(take, case), Path(case["label"]).name)
        return cases

    def parsed(self, overrides: dict[str, Any], overlays: Sequence[str] = ()) -> ConfigParser:
        """The bundle's training config with overlays, and with other values."""
        parser = ConfigParser()
        parser.read_config([self.bundle_config_path, *overlays])
        parser.update(literals(overrides))
        return parser

    def _dataset(
        self, cases: list[Case], overrides: dict[str, Any], overlays: Sequence[str] = (), part: str = "train"
    ) -> Any:
        # without class_names there is no warning: it means nothing if a single case does not show a class
        own = {f"{part}#dataset#data": cases, "train#dataset#class_names": None}
        return self.parsed({**overrides, **own}, overlays).get_parsed_content(f"{part}#dataset")

    def _train(
        self,
        overrides: dict[str, Any],
        method: str,
        overlays: Sequence[str],
        settings: TrainingSettings,
        max_epochs: int,
        cases: dict[str, Case],
        held_back: list[str],
    ) -> dict[str, Any]:
        batch_size = overrides.get("batch_size") or self.bundle_config["batch_size"]
        slices = len(self._dataset(overrides["train#dataset#data"], overrides, overlays))
        epochs = max_epochs or settings.epochs(-(-slices // batch_size))
        rates = settings.rates(self.parsed({}, overlays), own_method=not overlays)
        # scored only once, at the end: if the held-back labels also chose the epoch, the model would look better than
        # it is
        once = {"train#trainer#max_epochs": epochs, "val_interval": epochs, "warmup_steps": settings.warmup}
        workflow = ConfigWorkflow(
            config_file=[self.bundle_config_path, *overlays],
            meta_file=self.bundle_metadata_path,
            logging_file=False,
            workflow_type=None,
            run_id="training",
            **literals({**overrides, **rates, **once}),
        )
        workflow.initialize()
        content = workflow.parser.get_parsed_content
        trainer, evaluator = content("train#trainer"), content("validate#evaluator")
        network = evaluator.network
        versions = Versions(self.model.models_dir)
        served = versions.served()
        stats = StatsFile(self.work_dir / "stats.json", trainer, evaluator, served.score if served else None)
        workflow.run()

        scored = held_back or not self.model.trained
        prompted = [cases[name] for name in held_back] or overrides["train#dataset#data"]
        version, serve = compared(
            evaluator if scored else None, network, self.model, prompted, workflow.parser, held_back
        )
        before = served.trained_on if served and "weights" in overrides else []  # what it started from has learnt
        trained_on = {name for name in cases if name not in held_back}.union(before)
        version.trained_on = sorted(trained_on)
        if method != SERVED_METHODS[0]:
            version.note = f"{method}: {version.note}"
        version = versions.add(self.work_dir / "candidate.pt", version, serve)
        score, served_score, why = version.score, version.served_score, version.note
        needed = what_more_labels_bring(versions.list())
        message = f"{version.file}: {why}" + (f"; {needed}" if needed else "")
        logger.info("%s: %s", self.model.name, message)
        stats.write(best_metric=(score if serve else served_score) or 0, message=message)
        workflow.finalize()
        return {"version": version.file, "served": serve, "score": score, "served_score": served_score, "why": why}


def _or_left_out(take: Callable[[], None], name: str) -> None:
    """Take something to learn from, or say by name why it cannot be."""
    try:
        take()
    except Exception as err:
        logger.warning("%s: left out of training. %s", name, root_cause(err))
