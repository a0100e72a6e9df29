"""The MONAI Label app: bundles served to annotators in OHIF and 3D Slicer, and retrained from their labels."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from dicomweb_client.session_utils import create_session_from_user_pass
from fastapi import HTTPException
from lib.auth import accept_signed_tokens
from lib.cpu import CPU_ENVIRONMENT
from lib.ending import stop_tasks_with_the_server
from lib.endpoints import check_requests
from lib.gate import guard
from lib.infers import AutomaticTask, FinishedObjects, PromptedTask
from lib.logs import keep_persons_out
from lib.names import chosen
from lib.ohif import serve_ohif
from lib.page import serve_page
from lib.scoring import DiceScore, HausdorffScore, score_submission
from lib.served_model import ServedModel, find_bundles, mark_request
from lib.sessions import SafeSessions
from lib.start import refuse_workers, started, warn_if_open
from lib.stores import DicomStore, FolderStore, search_filter
from lib.strategies import build_strategies, start_background_scoring
from lib.trainers import RetrainTask
from lib.uploads import take_model
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.endpoints import infer
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from medsaga.bundle.errors import root_cause
from medsaga.files import remove_older

logger = logging.getLogger(__name__)

_LEFT_OVER = 3600  # seconds since its last change after which no request can be using an uploaded file

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"

# For the trainings started here; for the server itself they have to be set before it starts, as `make serve` does.
for key, value in CPU_ENVIRONMENT.items():
    os.environ.setdefault(key, value)


accept_signed_tokens()
keep_persons_out()


class MedsagaApp(MONAILabelApp):
    """Serves bundles: for each an automatic model ``NAME``, promptable ones and a training ``NAME``.

    ``NAME_prompt`` segments the slice that is clicked on, ``NAME_propagate`` follows the object through the volume.

    Args:
        app_dir: this folder.
        studies: folder of images, or address of a DICOMweb store.
        conf: ``models``: ``all`` (default), or names and folders of bundles, separated by commas.

    Raises:
        ValueError: ``models`` names no bundle.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        refuse_workers()
        self.models = {path.name: ServedModel(path) for path in find_bundles(conf.get("models", "all"), BUNDLES)}
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="medsaga",
            description="Segment Anything fine-tuned from your own labels",
            version="1.0",
            labels=list(dict.fromkeys(label for model in self.models.values() for label in model.labels)),
        )
        self._auto_update_scoring = False  # a label is scored as it comes in, see on_save_label
        for model in self.models.values():
            state = (
                "has a trained model" if model.trained else "has no trained model yet: segment by prompts, then train"
            )
            logger.info("%s: %s", model.name, state)

    # --- what MONAI Label asks for ----------------------------------------------------------------------------------

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return FolderStore(
            self.studies,
            models=self.models,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _init_dicomweb_datastore(self) -> Datastore:
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        listed = search_filter()
        # MONAI Label has set its own default there, by which the processes of trainings would list CT alone
        os.environ["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"] = json.dumps(listed)
        client = DICOMwebClientX(
            url=self.studies,
            session=create_session_from_user_pass(user, password) if user and password else None,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        store = DicomStore(
            client=client,
            search_filter=listed,
            models=self.models,
            cache_path=settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or None,
            fetch_by_frame=settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
            convert_to_nifti=settings.MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI,
        )
        infer.nifti_to_dicom_seg = store.proposal_as_seg
        return store

    def init_infers(self) -> dict[str, InferTask]:
        tasks: dict[str, InferTask] = {}
        self._finished = {name: FinishedObjects(model.labels) for name, model in self.models.items()}
        for name, model in self.models.items():
            finished = self._finished[name]
            tasks[name] = AutomaticTask(model, finished)
            tasks[f"{name}_prompt"] = PromptedTask(model, finished=finished)
            if model.dimension == 3:
                tasks[f"{name}_propagate"] = PromptedTask(model, propagate=True, finished=finished)
        return tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        return {name: RetrainTask(model) for name, model in self.models.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        return build_strategies(self.models, self._datastore.private)

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {"dice": DiceScore(self.models), "hd95": HausdorffScore(self.models)}

    def _load_sessions(self, load: bool = False) -> SafeSessions | None:
        return SafeSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY) if load else None

    def on_init_complete(self) -> None:
        """Called when the server, and not a training process, has started."""
        start = started()
        warn_if_open(start)
        # uploads and results lie here until they are answered: a folder that holds nothing else, so that a request can
        # name no other file of this machine
        self._uploads = tempfile.TemporaryDirectory(prefix="medsaga-")
        tempfile.tempdir = self._uploads.name
        super().on_init_complete()
        mark_request()  # whoever has started it will use it now
        from monailabel.app import app  # the server's own, which processes of trainings have not

        check_requests(self, lambda name, file: take_model(self._trainers, self.datastore(), name, file))
        serve_ohif(start.root_path)
        serve_page(app, self)
        guard(app, start.host)
        stop_tasks_with_the_server()
        start_background_scoring(self._strategies, self.datastore(), unasked=self._datastore.has_files)

    def cleanup_sessions(self) -> None:
        """Called every five minutes."""
        super().cleanup_sessions()
        remove_older(self._uploads.name, _LEFT_OVER)  # MONAI Label keeps the files of requests that it refuses

    # --- requests ---------------------------------------------------------------------------------------------------

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment an image of the datastore, of a session or of the request itself.

        The automatic mask of an image without a final label is kept under the tag ``original``, to be compared with the
        label that the annotator makes of it. The kept mask is the model's own, without the finished objects that the
        answer contains.

        Raises:
            HTTPException: 404 for an unknown model or image, 409 where a model has to be trained first, 422 for an
                image that cannot be segmented.
        """
        mark_request()
        task = _known(self._infers, request.get("model"), "model")
        datastore = datastore or self.datastore()
        image_id = request["image"]
        uploaded = self._is_uploaded(image_id)
        path = image_id if uploaded else datastore.get_image_uri(image_id)
        if not path or not os.path.exists(path):
            raise HTTPException(404, f"There is no image {image_id!r}.")
        automatic = isinstance(task, AutomaticTask)
        alone = uploaded or (automatic and request.get("replace"))
        final = None if alone else self._final_label(datastore, image_id, task.model)
        try:
            asked = {**request, "image": path, "final_label": final, "description": task.description}
            written, result = task(asked)
        except HTTPException:
            raise
        except Exception as err:
            logger.exception("%s on %s", request["model"], image_id)
            name = "the uploaded image" if uploaded else image_id
            # of a sequence beside it the folder, too
            cause = str(root_cause(err)).replace(path, name).replace(f"{Path(path).parent}/", "")
            raise HTTPException(422, f"{request['model']} cannot segment {name}. {cause}") from err

        own = result.pop("own", written)
        answer = {"label": written, "tag": DefaultLabelTag.ORIGINAL, "file": written, "params": result}
        wanted = bool(request.get("save_label"))
        proposal = automatic and not datastore.get_label_by_image_id(image_id, "final")
        if own and not uploaded and (wanted or proposal):
            tag = request.get("label_tag", DefaultLabelTag.ORIGINAL) if wanted else DefaultLabelTag.ORIGINAL
            version = result.get("weights") or task.model.version(chosen(request, "model_filename"))
            info = {"model": request["model"], "version": version, "params": result}
            try:
                answer["label"] = datastore.save_label(image_id, own, tag, info)
            except HTTPException as err:
                if wanted:
                    raise
                logger.warning("the proposal for %s cannot be saved: %s", image_id, err.detail)
        if own != written:
            Path(own).unlink()
        return answer

    @staticmethod
    def _final_label(datastore: Datastore, image_id: str, model: ServedModel) -> str | None:
        """File of an image's final label, where it is of a model's classes and can be had."""
        tag = DefaultLabelTag.FINAL.value
        try:
            models = datastore.get_label_info(image_id, tag).get("models", [model.name])
            return datastore.get_label_uri(image_id, tag) if model.name in models else None
        except HTTPException as err:
            if err.status_code != 404:
                logger.warning(
                    "the final label of %s cannot be used, so its objects are not protected: %s", image_id, err.detail
                )
            return None

    def _is_uploaded(self, image: str) -> bool:
        """Whether a path is of a file that this server has received."""
        path = Path(image)
        roots = [Path(self._sessions.store_path)] if self._sessions else []
        if tempfile.tempdir:
            roots.append(Path(tempfile.tempdir))
        return path.is_absolute() and any(root.resolve() in path.resolve().parents for root in roots)

    def model_file(self, model: str, validate: bool = True) -> str | None:
        """Path of the weights that a model or prompted model is served from; None without any."""
        task = self._infers.get(model)
        path = task.model.models_dir / "model.pt" if task else None
        return str(path) if path and (path.is_file() or not validate) else None

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        _known(self._infers, request.get("model"), "model")
        # MONAI Label deals images out to GPUs, which fails where there are none
        if torch.cuda.device_count() < 2:
            request = {**request, "multi_gpu": False}
        request = {**request, "replace": True}  # what the model finds, whatever annotators have finished
        return super().batch_infer(request, datastore)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        _known(self._strategies, request.get("strategy") or "random", "strategy")
        return super().next_sample(request)

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        _known(self._scoring_methods, request.get("method"), "scoring method")
        return super().scoring(request, datastore)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        _known(self._trainers, request.get("model"), "training")
        return super().train(request)

    def bundle_path(self, model: str | None) -> str | None:
        """Called before any background task is started, here also to refuse one for an unknown model."""
        if model is not None:
            _known({**self._trainers, **self._infers}, model, "model")
        return super().bundle_path(model)

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        super().on_save_label(image_id, label_id)
        datastore = self.datastore()
        report = datastore.last_save()
        if report["tag"] == DefaultLabelTag.FINAL.value:
            for finished in self._finished.values():
                finished.forget(datastore.get_image_uri(image_id))  # the label counts from now on
            threading.Thread(
                target=score_submission, args=(datastore, image_id, self.models), name="score", daemon=True
            ).start()
        return report


def _known(tasks: dict[str, Any], name: str | None, what: str) -> Any:
    if name not in tasks:
        raise HTTPException(404, f"There is no {what} {name!r}; known are {', '.join(sorted(tasks))}.")
    return tasks[name]
