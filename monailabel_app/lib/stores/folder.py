"""The studies folder: what annotators store is checked, nothing is lost or written over, nothing lies outside of it."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.labels.check import CheckedLabel, check_label, write_label
from lib.names import plain_name, refusing
from lib.served_model import ServedModel
from lib.stores.info import checked_info
from lib.stores.journal import enough_disk, to_disk
from lib.stores.listing import ListedStore, plain_tag, with_label
from lib.stores.upload import check_image
from medsaga.reading import Grid, open_image

__all__ = ["FolderStore"]

logger = logging.getLogger(__name__)


class FolderStore(ListedStore):
    """MONAI Label's folder of images and labels, as a team can rely on it.

    * Image ids and tags are plain names, so no path leads out of the folder.
    * An image is read to its end before it is taken; a label is compared with its image and the models' classes, see
      :func:`lib.labels.check.check_label`. What cannot be used is refused with its reason.
    * Files are written under a temporary name and renamed, ``datastore_v2.json`` too: a full disk or a killed server
      leaves what was there before.
    * Notes about images and labels are accepted only if they can be read back, see :mod:`lib.stores.info`.
    * An id that is taken keeps its image: the same file once more changes nothing, another is refused.
    * A label that replaces another leaves the former in ``.medsaga/history/TAG/``, with its time and annotator; models'
      proposals are not kept. Annotators who each use their own tag do not replace each other's labels. Removing an
      image removes its labels and their history.

    Args:
        datastore_path: the studies folder.
        models: served models by name, whose classes labels may have.
        extensions: patterns of file names that are images and labels.
        auto_reload: watch the folder for files that come and go.
        read_only: do not record files found in the folder.

    Attributes:
        has_files: whether images are here without being fetched first.
    """

    has_files = True

    def __init__(
        self,
        datastore_path: str,
        models: Mapping[str, ServedModel],
        extensions: Sequence[str] = ("*.nii.gz", "*.nii", "*.nrrd", "*.png", "*.jpg", "*.tif"),
        auto_reload: bool = False,
        read_only: bool = False,
    ) -> None:
        self.models = models
        self._saved = threading.local()
        ListedStore.__init__(self, datastore_path, extensions, auto_reload, read_only)

    # --- images -----------------------------------------------------------------------------------------------------

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        """Take a new image.

        Returns:
            its id.

        Raises:
            HTTPException: 400 for an id that is no plain name, 409 for one that another image has, 413 for a file
                beyond ``MEDSAGA_MAX_IMAGE_GB``, 422 for one that is no image or damaged, and for notes that cannot be
                kept, 507 without space.
        """
        stem, ext = self._to_id(os.path.basename(image_filename))
        image_id = plain_name(image_id or stem, "image id")
        info = checked_info(image_info or {}, image_id)
        known = self._datastore.objects.get(image_id)
        if known:
            if ext == known.image.ext and filecmp.cmp(image_filename, self.get_image_uri(image_id), shallow=False):
                return image_id
            raise HTTPException(
                409, f"There is another image {image_id} already. Give this one another id, or remove that one first."
            )
        check_image(image_id, image_filename, ext, self._extensions)
        with self._changing(f"image {image_id}"):
            if image_id in self._datastore.objects:
                raise HTTPException(409, f"Another client has just added an image {image_id}. Choose another id.")
            self._take_image(image_id, image_filename, ext, info)
        return image_id

    def _take_image(self, image_id: str, file: str | Path, ext: str, info: dict[str, Any]) -> None:
        name = self._filename(image_id, ext)
        data = DataModel(info={**info, "ts": int(time.time()), "name": name}, ext=ext)
        with self.private.staging() as folder:
            staged = shutil.copyfile(file, Path(folder) / name)
            to_disk(staged)
            with self._recording({image_id: ImageLabelModel(image=data)}):
                os.replace(staged, self._image_path(name))

    def remove_image(self, image_id: str) -> None:
        """Remove an image, its labels and their history, and what strategies know of it."""
        with self._changing("the list of images"):
            entry = self._object(image_id)
            files = [self._image_file(image_id, entry.image), *self.private.of_image(image_id)]
            files += [self._label_file(image_id, tag, label) for tag, label in entry.labels.items()]
            with self._recording({image_id: None}):
                for file in files:
                    file.unlink(missing_ok=True)

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image.

        Raises:
            HTTPException: 404 when there is none of this id.
        """
        return os.path.realpath(self._image_file(image_id, self._object(image_id).image))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        self._object(image_id)
        return super().get_image_info(image_id)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Note something about an image.

        Raises:
            HTTPException: 404 when there is none of this id, 422 for what could not be read back, 507 without space.
        """
        with self._changing(f"the info of {image_id}"):
            former = self._object(image_id)
            self._record({image_id: former.model_copy(update={"image": _noted(former.image, info, image_id)})})

    def _grid(self, image_id: str) -> Grid:
        """The voxels that a label of the image must have."""
        path = self.get_image_uri(image_id)
        with refusing(path, f"image {image_id}"):
            return open_image(path).grid

    # --- labels -----------------------------------------------------------------------------------------------------

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None) -> str:
        """Check a label, keep the one that it replaces, and store it.

        The annotator is ``user`` or ``client_id`` of the info. :meth:`last_save` says what was done.

        Args:
            image_id: of its image.
            label_filename: see :func:`lib.labels.check.check_label`.
            label_tag: ``final`` or another plain name.
            label_info: what the client says of it; names of its values as in :mod:`lib.labels.naming`.

        Returns:
            the label's id, which is the image's.

        Raises:
            HTTPException: 400 for a tag that is no plain name, 404 for an unknown image, 422 with the reason for a
                label that cannot be used, 507 without space.
        """
        tag = plain_tag(label_tag)
        what = f"label {tag} of {image_id}"
        grid = self._grid(image_id)
        info = checked_info(label_info or {}, what)
        checked = check_label(label_filename, grid, self.models, info, what)
        info = {**info, **self._publish(image_id, tag, checked, info)}
        info, kept = self._put_label(image_id, tag, checked, info, label_filename)
        self._saved.report = {
            "tag": tag,
            **{key: info[key] for key in ("annotator", "models", "voxels")},
            "warnings": list(checked.meaning.warnings),
            "former_label": str(kept.relative_to(self._datastore_path)) if kept else None,
        }
        for warning in checked.meaning.warnings:
            logger.warning(warning)
        return image_id

    def last_save(self) -> dict[str, Any]:
        """What the last :meth:`save_label` of this thread did, for the answer to the client.

        Returns:
            ``tag``, ``annotator``, ``models`` that the label fits, ``voxels`` by class, ``warnings``, and
            ``former_label``, the path in the store's folder of the label it replaced, None for the first.
        """
        return dict(getattr(self._saved, "report", {}))

    def _publish(self, image_id: str, tag: str, checked: CheckedLabel, info: dict[str, Any]) -> dict[str, Any]:
        """Put a checked label where others see it; return what to note about it. Here that is this folder."""
        return {}

    def _put_label(
        self, image_id: str, tag: str, checked: CheckedLabel, info: dict[str, Any], file: str | None = None
    ) -> tuple[dict[str, Any], Path | None]:
        """Put a checked label in place; its notes, and the path of the one that it replaces in the history."""
        with self._changing(f"label {tag} of {image_id}"), self.private.staging() as folder:
            entry = self._object(image_id)
            former = entry.labels.get(tag)
            now = int(time.time())
            staged = self._staged_label(image_id, entry, checked, file, Path(folder))
            ext = self._to_id(staged.name)[1]
            info = {
                **info,
                "ts": now,
                "name": self._filename(image_id, ext),
                "annotator": info.get("user") or info.get("client_id") or "unknown",
                # names of the stored values; the submitted values may have been different
                "label_info": [{"name": name, "idx": number} for number, name in checked.meaning.classes.items()],
                "models": list(checked.meaning.models),
                "voxels": checked.voxels,
                "first_saved": former.info.get("first_saved", former.info.get("ts", now)) if former else now,
            }
            label = DataModel(info=info, ext=ext)
            target = self._label_file(image_id, tag, label)
            target.parent.mkdir(parents=True, exist_ok=True)
            new = with_label(entry, tag, label)
            with self._keeping(image_id, tag, former) as kept, self._recording({image_id: new}):
                os.replace(staged, target)
            if former and former.ext != ext:
                self._label_file(image_id, tag, former).unlink(missing_ok=True)
        return info, kept

    def _staged_label(
        self, image_id: str, entry: ImageLabelModel, checked: CheckedLabel, file: str | None, folder: Path
    ) -> Path:
        """The label to store, in a temporary folder."""
        ext = self._to_id(os.path.basename(file))[1] if file else ""
        if checked.as_is and f"*{ext}" in self._extensions:
            staged = Path(shutil.copyfile(file, folder / f"label{ext}"))
        else:
            staged = write_label(checked, self._filename(image_id, entry.image.ext), folder, "label")
        to_disk(staged)
        return staged

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; a copy is kept in the history.

        Raises:
            HTTPException: 404 when there is none, 507 without space.
        """
        tag = plain_tag(label_tag)
        with self._changing(f"the history of {label_id}"):
            image_id, former = self._label(label_id, tag)
            entry = self._object(image_id)
            with self._keeping(image_id, tag, former):
                self._record({image_id: with_label(entry, tag, None)})
            self._label_file(image_id, tag, former).unlink(missing_ok=True)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of a label.

        Raises:
            HTTPException: 404 when there is none of this image and tag.
        """
        image_id, label = self._label(label_id, label_tag)
        return os.path.realpath(self._label_file(image_id, plain_tag(label_tag), label))

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        return dict(self._label(label_id, label_tag)[1].info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Note something about a label.

        Raises:
            HTTPException: 404 when there is none of this image and tag, 422 for what could not be read back, 507
                without space.
        """
        tag = plain_tag(label_tag)
        with self._changing(f"the info of label {tag} of {label_id}"):
            image_id, former = self._label(label_id, tag)
            label = _noted(former, info, f"label {tag} of {label_id}")
            self._record({image_id: with_label(self._object(image_id), tag, label)})

    def get_labeled_images(self, label_tag: str | None = None, labels: Sequence[str] | None = None) -> list[str]:
        """Ids of the images that have a label of a tag, ``final`` unless told."""
        tag = plain_tag(label_tag or DefaultLabelTag.FINAL)
        return [key for key, entry in self._datastore.objects.items() if tag in entry.labels]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: Sequence[str] | None = None) -> list[str]:
        """Ids of the images that have no label of a tag, ``final`` unless told."""
        labelled = set(self.get_labeled_images(label_tag))
        return [key for key in self.list_images() if key not in labelled]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A zip file of the labelled images and their labels.

        Raises:
            HTTPException: 404 when there is no label in use, 507 without space.
        """
        if not self.get_labeled_images():
            raise HTTPException(404, "There is no labelled image to download yet.")
        with enough_disk("the archive"):
            return super().get_dataset_archive(limit_cases)


def _noted(former: DataModel, info: Any, what: str) -> DataModel:
    """With further notes of a request; the check reports those that are not a JSON object."""
    joined = {**former.info, **info} if isinstance(info, Mapping) else info
    return former.model_copy(update={"info": checked_info(joined, what)})
