"""The list of a store's images and labels, on disk and in memory, where their files are, and former labels."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastapi import HTTPException
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.names import plain_name
from lib.private import Private
from lib.stores.journal import Journal, enough_disk

__all__ = ["ListedStore", "plain_tag", "with_label"]


class ListedStore(LocalDatastore):
    """MONAI Label's folder with a list that several threads and processes change, and that survives all of them.

    Its arguments are those of :class:`~lib.stores.folder.FolderStore`.

    Attributes:
        private: the paths of what is not an image or a label in use.
    """

    def __init__(
        self, datastore_path: str, extensions: Sequence[str], auto_reload: bool = False, read_only: bool = False
    ) -> None:
        self.private = Private(datastore_path)
        self._journal = Journal(Path(datastore_path) / "datastore_v2.json", self.private)
        # called by its name, because in a DICOM store super() is another class
        LocalDatastore.__init__(
            self, datastore_path, extensions=extensions, auto_reload=auto_reload, read_only=read_only
        )
        if auto_reload:
            self._handler.on_moved = lambda event: self.refresh()  # this class and rsync rename files into place

    # --- names and paths --------------------------------------------------------------------------------------------

    def _object(self, image_id: str) -> ImageLabelModel:
        entry = self._datastore.objects.get(plain_name(image_id, "image id"))
        if entry is None:
            raise HTTPException(404, f"There is no image {image_id!r}.")
        return entry

    def _label(self, label_id: str, tag: str) -> tuple[str, DataModel]:
        """The image of a label, and what is noted of the label."""
        label = self._object(label_id).labels.get(plain_tag(tag))
        if label is None:
            raise HTTPException(404, f"Image {label_id} has no label {tag!r}.")
        return label_id, label

    def _image_path(self, name: str) -> Path:
        return Path(self._datastore.image_path()) / name

    def _image_file(self, image_id: str, image: DataModel) -> Path:
        return self._image_path(self._filename(image_id, image.ext))

    def _label_file(self, image_id: str, tag: str, label: DataModel) -> Path:
        return Path(self._datastore.label_path(tag)) / self._filename(image_id, label.ext)

    def _to_id(self, file: str) -> tuple[str, str]:
        known = sorted((pattern.replace("*", "") for pattern in self._extensions), key=len, reverse=True)
        ext = next((e for e in known if file.endswith(e)), os.path.splitext(file)[1])
        return file[: len(file) - len(ext)], ext

    # --- the list on disk -------------------------------------------------------------------------------------------

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        """Exclusive access to the list, as it is on disk now; 507 where the disk is full."""
        with enough_disk(what), self._journal.locked():
            self._init_from_datastore_file()
            yield

    @contextmanager
    def _recording(self, changes: Mapping[str, ImageLabelModel | None]) -> Iterator[None]:
        """Write the list with other entries, and without those that become None; see :meth:`Journal.recording`."""
        entries = {**self._datastore.objects, **changes}
        new = self._datastore.model_copy(update={"objects": {key: v for key, v in entries.items() if v is not None}})
        with self._journal.recording(new):
            yield
        self._datastore = new

    def _record(self, changes: Mapping[str, ImageLabelModel | None]) -> None:
        with self._recording(changes):
            pass

    @contextmanager
    def _keeping(self, image_id: str, tag: str, former: DataModel | None) -> Iterator[Path | None]:
        """Keep the label in use in the history, with its info beside it, if what is done inside succeeds.

        A proposal, which a model can make again, is not kept.

        Yields:
            path of the kept label, None where nothing is kept.
        """
        source = self._label_file(image_id, tag, former) if former else None
        proposal = tag == DefaultLabelTag.ORIGINAL.value and former is not None and "model" in former.info
        if source is None or not source.is_file() or proposal:
            yield None
            return
        saved = former.info.get("ts", source.stat().st_mtime)
        who = former.info.get("annotator", "unknown")
        kept, info = self.private.former_label(image_id, tag, saved, who, former.ext)
        try:
            info.write_text(json.dumps(former.info, indent=2))
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

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._journal.locked():
            self._record({})

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        self._datastore = self._journal.read(self._datastore)

    def _reconcile_datastore(self) -> None:
        """Record files that came or went by other ways than this class."""
        with self._journal.locked():
            self._init_from_datastore_file()
            former = self._datastore.objects
            objects = {}
            for key, entry in former.items():
                if self._image_file(key, entry.image).exists():
                    labels = {tag: v for tag, v in entry.labels.items() if self._label_file(key, tag, v).exists()}
                    objects[key] = entry.model_copy(update={"labels": labels})
            for key, ext in self._found(self._datastore.image_path()):
                if key not in objects:
                    objects[key] = ImageLabelModel(image=self._data(key, ext))
            for folder in Path(self._datastore.label_path(None)).iterdir():
                if folder.is_dir() and not folder.name.startswith("."):
                    for key, ext in self._found(folder):
                        if key in objects and folder.name not in objects[key].labels:
                            objects[key] = with_label(objects[key], folder.name, self._data(key, ext))
            if objects != former or not self._journal.path.exists():
                self._record({**dict.fromkeys(former), **objects})

    def _found(self, folder: str | Path) -> list[tuple[str, str]]:
        files = sorted(name for name in self._list_files(str(folder), self._extensions) if not name.startswith("."))
        return [self._to_id(file) for file in files]

    def _data(self, key: str, ext: str) -> DataModel:
        return DataModel(info={"ts": int(time.time()), "name": self._filename(key, ext)}, ext=ext)


def with_label(entry: ImageLabelModel, tag: str, label: DataModel | None) -> ImageLabelModel:
    """An image's entry with another label of a tag, or without one."""
    labels = {**entry.labels, tag: label}
    return entry.model_copy(update={"labels": {key: value for key, value in labels.items() if value is not None}})


def plain_tag(tag: str) -> str:
    """A tag that is a plain name; MONAI Label's own come as an enumeration."""
    return plain_name(str(getattr(tag, "value", tag)), "tag")
