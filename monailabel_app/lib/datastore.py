"""The studies folder: what annotators store is checked, nothing is lost or written over, nothing lies outside of it."""

from __future__ import annotations

import errno
import filecmp
import glob
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.labels import CheckedLabel, check_label, write_label
from lib.names import plain_name, refusing
from lib.served_model import ServedModel
from medsaga.reading import max_image_bytes, open_image

__all__ = ["PRIVATE", "CheckedDatastore", "enough_disk"]

logger = logging.getLogger(__name__)

PRIVATE = ".medsaga"  # folder in the studies folder for what is not an image or a label in use
_LEFT_OVER = 24 * 3600  # seconds after which a file that was never finished is deleted


@contextmanager
def enough_disk(what: str) -> Iterator[None]:
    """Answer 507 where the disk is full.

    Args:
        what: was to be written, for the error.

    Raises:
        HTTPException: 507.
    """
    try:
        yield
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise HTTPException(
            507, f"No space left on the server's disk for {what}. It was not saved; what was saved before is unchanged."
        ) from err


class CheckedDatastore(LocalDatastore):
    """MONAI Label's folder of images and labels, as a team can rely on it.

    * Image ids and tags are plain names, so no path leads out of the folder.
    * An image is read to its end before it is taken; a label is compared with its image and the models' classes, see
      :func:`lib.labels.check_label`. What cannot be used is refused with its reason.
    * Files are written under a temporary name and renamed, ``datastore_v2.json`` too: a full disk or a killed server
      leaves what was there before.
    * An id that is taken keeps its image: the same file once more changes nothing, another is refused.
    * A label that replaces another leaves the former in ``.medsaga/history/TAG/``, with its time and annotator; models'
      proposals are not kept. Annotators who use a tag each do not meet. Removing an image removes its labels and their
      history.

    Args:
        datastore_path: the studies folder.
        models: served models by name, whose classes labels may have.
        extensions: patterns of file names that are images and labels.
        auto_reload: watch the folder for files that come and go.
        read_only: do not record files found in the folder.
    """

    def __init__(
        self,
        datastore_path: str,
        models: Mapping[str, ServedModel],
        extensions: Sequence[str] = ("*.nii.gz", "*.nii", "*.nrrd", "*.png", "*.jpg", "*.tif"),
        auto_reload: bool = False,
        read_only: bool = False,
    ) -> None:
        self.models = models
        self.private = Path(datastore_path) / PRIVATE
        self._incoming = self.private / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        for file in self._incoming.iterdir():
            if file.stat().st_mtime < time.time() - _LEFT_OVER:
                file.unlink(missing_ok=True)
        self._file_lock = FileLock(os.path.join(datastore_path, ".lock"))
        self._thread_lock = threading.RLock()
        self._saved = threading.local()
        super().__init__(datastore_path, extensions=extensions, auto_reload=auto_reload, read_only=read_only)
        if auto_reload:
            self._handler.on_moved = self._on_moved

    # --- images -----------------------------------------------------------------------------------------------------

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        """Take a new image.

        Returns:
            its id.

        Raises:
            HTTPException: 400 for an id that is no plain name, 409 for one that another image has, 413 for a file
                beyond ``MEDSAGA_MAX_IMAGE_GB``, 422 for one that is no image or damaged, 507 without space.
        """
        stem, ext = self._to_id(os.path.basename(image_filename))
        image_id = plain_name(image_id or stem, "image id")
        known = self._datastore.objects.get(image_id)
        if known:
            if ext == known.image.ext and filecmp.cmp(image_filename, self.get_image_uri(image_id), shallow=False):
                return image_id
            raise HTTPException(
                409, f"There is another image {image_id} already. Give this one another id, or remove that one first."
            )
        self._check_upload(image_id, image_filename, ext)
        with enough_disk(f"image {image_id}"), self._locked():
            self._init_from_datastore_file()
            if image_id in self._datastore.objects:
                raise HTTPException(409, f"Another client has just added an image {image_id}. Choose another id.")
            name = self._filename(image_id, ext)
            info = {**(image_info or {}), "ts": int(time.time()), "name": name}
            staged = self._stage(image_filename, ext)
            try:
                new = {**self._datastore.objects, image_id: ImageLabelModel(image=DataModel(info=info, ext=ext))}
                with self._recording(new):
                    os.replace(staged, self._image_path(name))
            finally:
                staged.unlink(missing_ok=True)
        return image_id

    def _check_upload(self, image_id: str, file: str, ext: str) -> None:
        known = [pattern.replace("*", "") for pattern in self._extensions]
        if ext not in known:
            raise HTTPException(
                422, f"{image_id}: a file named {ext or 'without a suffix'}; expected {', '.join(known)}."
            )
        size = os.path.getsize(file)
        if size > max_image_bytes():
            raise HTTPException(
                413,
                f"{image_id}: {size / 1e9:.2f} GB, more than the {max_image_bytes() / 1e9:g} GB that this server takes "
                "(MEDSAGA_MAX_IMAGE_GB). Put the file into the studies folder instead.",
            )
        with refusing(file, image_id):
            image = open_image(file)
            image.load()  # to its end
        for notice in image.notices:
            logger.warning(notice.replace(file, image_id))
        grid = image.grid
        if grid.rank not in (2, 3):
            raise HTTPException(422, f"{image_id}: it has the shape {grid.shape}; expected a 2-D image or one volume.")
        if grid.rank == 3 and grid.channels != 1:
            raise HTTPException(422, f"{image_id}: each voxel has {grid.channels} values; expected one.")

    def remove_image(self, image_id: str) -> None:
        """Remove an image, its labels and their history, and what strategies know of it."""
        with enough_disk("the list of images"), self._locked():
            self._init_from_datastore_file()
            entry = self._object(image_id)
            files = [self._image_path(self._filename(image_id, entry.image.ext))]
            files += [self._label_path(tag, self._filename(image_id, v.ext)) for tag, v in entry.labels.items()]
            # the time is followed by what _keep adds: an image named like another with a suffix keeps its own
            history = re.compile(re.escape(image_id) + r"\.\d{19}\.\d{8}T\d{6}Z\..*")
            files += [file for file in self.private.glob("history/*/*") if history.fullmatch(file.name)]
            files += self.private.glob(f"*/{glob.escape(image_id)}.json")  # what strategies know of it
            with self._recording({key: v for key, v in self._datastore.objects.items() if key != image_id}):
                for file in files:
                    file.unlink(missing_ok=True)

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image.

        Raises:
            HTTPException: 404 when there is none of this id.
        """
        name = self._filename(image_id, self._object(image_id).image.ext)
        return str(os.path.realpath(self._image_path(name)))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        self._object(image_id)
        return super().get_image_info(image_id)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        with enough_disk(f"the info of {image_id}"), self._locked():
            self._init_from_datastore_file()
            former = self._object(image_id)
            image = former.image.model_copy(update={"info": {**former.image.info, **info}})
            new = former.model_copy(update={"image": image})
            with self._recording({**self._datastore.objects, image_id: new}):
                pass

    # --- labels -----------------------------------------------------------------------------------------------------

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None) -> str:
        """Check a label, keep the one that it replaces, and store it.

        The annotator is ``user`` or ``client_id`` of the info. :meth:`last_save` says what was done.

        Returns:
            the label's id, which is the image's.

        Raises:
            HTTPException: 400 for a tag that is no plain name, 404 for an unknown image, 422 with the reason for a
                label that cannot be used, 507 without space.
        """
        tag = _tag(label_tag)
        image = self.get_image_uri(image_id)
        info = dict(label_info or {})
        model = self.models.get(info.get("model", ""))
        what = f"label {tag} of {image_id}"
        models = {model.name: model} if model else self.models
        checked = check_label(label_filename, image, models, info.get("label_info"), what)
        with enough_disk(what), self._locked():
            self._init_from_datastore_file()
            entry = self._object(image_id)
            former = entry.labels.get(tag)
            staged = self._staged_label(checked, label_filename, image)
            try:
                ext = self._to_id(staged.name)[1]
                info = self._label_info(info, checked, image_id, ext, former)
                labels = {**entry.labels, tag: DataModel(info=info, ext=ext)}
                new = entry.model_copy(update={"labels": labels})
                target = self._label_path(tag, info["name"])
                target.parent.mkdir(parents=True, exist_ok=True)
                with (
                    self._keeping(image_id, tag, former) as kept,
                    self._recording({**self._datastore.objects, image_id: new}),
                ):
                    os.replace(staged, target)
            finally:
                staged.unlink(missing_ok=True)
            if former and former.ext != ext:
                self._label_path(tag, self._filename(image_id, former.ext)).unlink(missing_ok=True)
        self._saved.report = {
            "tag": tag,
            "annotator": info["annotator"],
            "models": info["models"],
            "voxels": info["voxels"],
            "warnings": list(checked.warnings),
            "former_label": str(kept.relative_to(self._datastore_path)) if kept else None,
        }
        for warning in checked.warnings:
            logger.warning(warning)
        return image_id

    def last_save(self) -> dict[str, Any]:
        """What the last :meth:`save_label` of this thread did, for the answer to the client.

        Returns:
            ``tag``, ``annotator``, ``models`` that the label fits, ``voxels`` by class, ``warnings``, and
            ``former_label``, the path in the studies folder of the label it replaced, None for the first.
        """
        return dict(getattr(self._saved, "report", {}))

    def _label_info(
        self,
        info: dict[str, Any],
        checked: CheckedLabel,
        image_id: str,
        ext: str,
        former: DataModel | None,
    ) -> dict[str, Any]:
        now = time.time()
        info.update(
            ts=int(now),
            name=self._filename(image_id, ext),
            annotator=str(info.get("user") or info.get("client_id") or "unknown"),
            models=list(checked.models),
            voxels=checked.labels,
            first_saved=former.info.get("first_saved", former.info.get("ts", now)) if former else now,
        )
        return info

    def _staged_label(self, checked: CheckedLabel, file: str, image: str) -> Path:
        """The label to store, under a temporary name."""
        _, ext = self._to_id(os.path.basename(file))
        if checked.as_is and f"*{ext}" in self._extensions:
            return self._stage(file, ext)
        stem = uuid.uuid4().hex
        try:
            staged = write_label(checked, image, self._incoming, stem)
            _to_disk(staged)
        except OSError:
            for part in self._incoming.glob(f"{stem}*"):
                part.unlink()
            raise
        return staged

    @contextmanager
    def _keeping(self, image_id: str, tag: str, former: DataModel | None) -> Iterator[Path | None]:
        """Keep the label in use in the history, with its info beside it, if what is done inside succeeds.

        A proposal, which a model can make again, is not kept.

        Yields:
            path of the kept label, None where nothing is kept.
        """
        proposal = tag == DefaultLabelTag.ORIGINAL.value and former is not None and "model" in former.info
        source = self._label_path(tag, self._filename(image_id, former.ext)) if former else None
        if source is None or not source.is_file() or proposal:
            yield None
            return
        folder = self.private / "history" / tag
        folder.mkdir(parents=True, exist_ok=True)
        saved = datetime.fromtimestamp(former.info.get("ts", source.stat().st_mtime), timezone.utc)
        annotator = re.sub(r"[^\w-]", "_", str(former.info.get("annotator", "unknown")))[:40]
        # the time of replacing makes it unique, and its order is that of the history
        stem = f"{image_id}.{time.time_ns()}.{saved:%Y%m%dT%H%M%SZ}.{annotator}"
        kept, info = folder / f"{stem}{former.ext}", folder / f"{stem}.json"
        try:
            info.write_text(json.dumps(former.info, indent=2, default=str))
            try:
                os.link(source, kept)
            except OSError as err:
                if err.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
                    raise
                shutil.copyfile(source, kept)
            yield kept
        except BaseException:
            kept.unlink(missing_ok=True)
            info.unlink(missing_ok=True)
            raise

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; a copy is kept in the history.

        Raises:
            HTTPException: 404 when there is none, 507 without space.
        """
        with enough_disk(f"the history of {label_id}"), self._locked():
            self._init_from_datastore_file()
            tag = _tag(label_tag)
            former = self._label(label_id, tag)
            entry = self._object(label_id)
            labels = {key: label for key, label in entry.labels.items() if key != tag}
            new = {**self._datastore.objects, label_id: entry.model_copy(update={"labels": labels})}
            with self._keeping(label_id, tag, former), self._recording(new):
                pass
            self._label_path(tag, self._filename(label_id, former.ext)).unlink(missing_ok=True)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of a label.

        Raises:
            HTTPException: 404 when there is none of this image and tag.
        """
        name = self._filename(label_id, self._label(label_id, label_tag).ext)
        return str(os.path.realpath(self._label_path(_tag(label_tag), name)))

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        return dict(self._label(label_id, label_tag).info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        with enough_disk(f"the info of label {label_tag} of {label_id}"), self._locked():
            self._init_from_datastore_file()
            former = self._label(label_id, label_tag)
            entry = self._object(label_id)
            labels = {**entry.labels, _tag(label_tag): former.model_copy(update={"info": {**former.info, **info}})}
            with self._recording({**self._datastore.objects, label_id: entry.model_copy(update={"labels": labels})}):
                pass

    def get_labeled_images(self, label_tag: str | None = None, labels: Sequence[str] | None = None) -> list[str]:
        """Ids of the images that have a label of a tag, ``final`` unless told."""
        tag = _tag(label_tag or DefaultLabelTag.FINAL)
        return [key for key, entry in self._datastore.objects.items() if tag in entry.labels]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: Sequence[str] | None = None) -> list[str]:
        """Ids of the images that have no label of a tag, ``final`` unless told."""
        tag = _tag(label_tag or DefaultLabelTag.FINAL)
        return [key for key, entry in self._datastore.objects.items() if tag not in entry.labels]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A zip file of the labelled images and their labels.

        Raises:
            HTTPException: 404 when there is no label in use, 507 without space.
        """
        if not self.get_labeled_images():
            raise HTTPException(404, "There is no labelled image to download yet.")
        with enough_disk("the archive"):
            return super().get_dataset_archive(limit_cases)

    # --- names and paths --------------------------------------------------------------------------------------------

    def _object(self, image_id: str) -> ImageLabelModel:
        entry = self._datastore.objects.get(plain_name(image_id, "image id"))
        if entry is None:
            raise HTTPException(404, f"There is no image {image_id!r}.")
        return entry

    def _label(self, label_id: str, tag: str) -> DataModel:
        label = self._object(label_id).labels.get(_tag(tag))
        if label is None:
            raise HTTPException(404, f"Image {label_id} has no label {tag!r}.")
        return label

    def _image_path(self, name: str) -> Path:
        return Path(self._datastore.image_path()) / name

    def _label_path(self, tag: str, name: str) -> Path:
        return Path(self._datastore.label_path(tag)) / name

    def _to_id(self, file: str) -> tuple[str, str]:
        known = sorted((pattern.replace("*", "") for pattern in self._extensions), key=len, reverse=True)
        ext = next((e for e in known if file.endswith(e)), os.path.splitext(file)[1])
        return file[: len(file) - len(ext)], ext

    # --- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the threads of this process and the processes that use the folder."""
        with self._thread_lock, self._file_lock:
            yield

    def _stage(self, file: str, ext: str) -> Path:
        """A copy of a file in the studies folder's file system, under a temporary name."""
        staged = self._incoming / f"{uuid.uuid4().hex}{ext}"
        try:
            shutil.copyfile(file, staged)
            _to_disk(staged)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
        return staged

    @contextmanager
    def _recording(self, objects: dict[str, ImageLabelModel]) -> Iterator[None]:
        """Write the list of images and labels; what is done inside comes between writing and renaming, so that it is
        done only where there is space for the list."""
        new = self._datastore.model_copy(update={"objects": objects})
        staged = self._incoming / f"{uuid.uuid4().hex}.json"
        try:
            staged.write_text(json.dumps(new.model_dump(exclude={"base_path"}), indent=2, default=str))
            _to_disk(staged)
            yield
            os.replace(staged, self._datastore_config_path)
        finally:
            staged.unlink(missing_ok=True)
        self._datastore = new
        self._config_ts = os.stat(self._datastore_config_path).st_mtime

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._locked(), self._recording(self._datastore.objects):
            pass

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Take over what another process has written."""
        with self._locked():
            path = Path(self._datastore_config_path)
            if not path.exists() or path.stat().st_mtime == self._config_ts:
                return
            written = path.stat().st_mtime
            try:
                store = LocalDatastoreModel.model_validate_json(path.read_text())
            except ValueError as err:
                if throw_exception:
                    raise ValueError(
                        f"{path} is damaged. Move it away: the server then lists images and labels anew. {err}"
                    ) from err
                logger.error(f"{path} is damaged and not read: {err}")
                return
            store.base_path = self._datastore_path
            self._datastore, self._config_ts = store, written

    def _reconcile_datastore(self) -> None:
        """Record files that came or went by other ways than this class."""
        with self._locked():
            self._init_from_datastore_file()
            former = self._datastore.objects
            objects = {}
            for key, entry in former.items():
                if self._image_path(self._filename(key, entry.image.ext)).exists():
                    objects[key] = entry.model_copy(update={"labels": self._existing(key, entry)})
            for key, ext in self._found(self._datastore.image_path()):
                if key not in objects:
                    objects[key] = ImageLabelModel(image=self._data(key, ext))
            for folder in Path(self._datastore.label_path(None)).iterdir():
                if folder.is_dir() and not folder.name.startswith("."):
                    for key, ext in self._found(folder):
                        if key in objects and folder.name not in objects[key].labels:
                            labels = {**objects[key].labels, folder.name: self._data(key, ext)}
                            objects[key] = objects[key].model_copy(update={"labels": labels})
            if objects != former or not os.path.exists(self._datastore_config_path):
                with self._recording(objects):
                    pass

    def _existing(self, key: str, entry: ImageLabelModel) -> dict[str, DataModel]:
        return {
            tag: label
            for tag, label in entry.labels.items()
            if self._label_path(tag, self._filename(key, label.ext)).exists()
        }

    def _found(self, folder: str | Path) -> list[tuple[str, str]]:
        files = sorted(name for name in self._list_files(str(folder), self._extensions) if not name.startswith("."))
        return [self._to_id(file) for file in files]

    def _data(self, key: str, ext: str) -> DataModel:
        return DataModel(info={"ts": int(time.time()), "name": self._filename(key, ext)}, ext=ext)

    def _on_moved(self, event: Any) -> None:
        """Files are also put in place by renaming: by this class, by rsync."""
        self.refresh()


def _tag(tag: str) -> str:
    """A tag that is a plain name; MONAI Label's own come as an enumeration."""
    return plain_name(str(getattr(tag, "value", tag)), "tag")


def _to_disk(path: Path) -> None:
    """Wait until a file has reached the disk: quotas and network file systems tell of missing space only then."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
