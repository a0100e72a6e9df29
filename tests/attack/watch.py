"""What must hold of a server whatever it was sent."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import torch

from ..integration.server import Server, read_mask
from .store import Store

__all__ = ["MOST_MEMORY", "SECRET", "Watch"]

MOST_MEMORY = 2 * 10**9  # bytes that the server may have needed at any time beyond what it has after its first answer
SECRET = "secret-of-a-file-outside-5b1e"


class Watch:
    """Keeps what was true before the first request and compares.

    Args:
        root: folder of the server's folder and of files that are none of its business.
        server: running, with final labels of the guarded images.
        guarded: images whose labels must survive.
        mark: file that shows that an expression was evaluated, or a path was followed.
        store: whose instances must survive, where the server's folder of studies is a cache.
    """

    def __init__(self, root: Path, server: Server, guarded: list[str], mark: str, store: Store | None = None) -> None:
        self.root, self.server, self.mark, self.store = root, server, mark, store
        self.folder = server.log.parent
        self.model = server.bundle / "models" / "model.pt"
        self.outside = self._outside()
        self.images = {name: _digest(server.studies / f"{name}.nii.gz") for name in guarded}
        self.labels = {name: _digest(self._label(name)) for name in guarded}
        self.weights, self.shapes = _digest(self.model), _shapes(self.model)
        self._first_weights = self.model.read_bytes()
        self.pid = server.process.pid
        assert server.infer("hippocampus", guarded[0]).ok, server.tail()
        self.first = self.most = _most_memory(self.pid)

    def restarted(self, server: Server) -> None:
        """Go on with the process that has taken a stopped one's place."""
        self.server, self.pid = server, server.process.pid

    def marks(self) -> list[str]:
        """Files that nothing but evaluated text or a followed path can have made; they are removed."""
        places = [*self.root.rglob(f"{self.mark}*"), *_top(Path(tempfile.gettempdir()), self.mark)]
        places += [p for top in (Path.cwd(), Path.home(), Path("/")) for p in _top(top, self.mark)]
        found = sorted({p for p in places if p.name.partition(".")[0] == self.mark})
        for path in found:
            path.unlink(missing_ok=True)
        return [f"{path} was written" for path in found]

    def check(self) -> list[str]:
        """Everything that is not as it must be."""
        faults = self.marks()
        now = self._outside()
        changed = {path for path, _ in self.outside.items() ^ now.items()}
        faults += [f"outside the server's folders: {path} changed" for path in sorted(changed)]
        self.outside = now
        faults += self._check_weights() + self._check_labels() + self._check_answers()
        faults += self.store.changed() if self.store else []
        if self.server.process.poll() is not None:
            return [*faults, f"the server has ended with {self.server.process.returncode}"]
        if self.server.process.pid != self.pid:
            faults.append("the server is another process")
        self.most = max(self.most, _most_memory(self.pid))
        if self.most - self.first > MOST_MEMORY:
            faults.append("the server needed too much memory")
        return faults

    def _check_weights(self) -> list[str]:
        kept = {_digest(path) for path in self.model.parent.rglob("*.pt") if path.is_file()}
        faults = [] if self.weights in kept else ["weights: the served ones of before are gone"]
        if not self.model.is_file():
            faults.append("weights: model.pt is gone")
        elif _digest(self.model) != self.weights and _shapes(self.model) != self.shapes:
            faults.append("weights: model.pt is none of this bundle")
        if faults:  # what follows is to be seen by itself
            self.model.write_bytes(self._first_weights)
        return faults

    def _check_labels(self) -> list[str]:
        faults = []
        try:
            text = (self.server.studies / "datastore_v2.json").read_text()
            objects = json.loads(text, parse_constant=_no_constant)["objects"]
            faults += [f"datastore: {name} has no final label" for name in self.labels if not _final(objects, name)]
        except (ValueError, OSError, KeyError, TypeError, RecursionError) as err:
            faults.append(f"datastore_v2.json cannot be read: {type(err).__name__}")
        kept = {_digest(p) for p in self.server.studies.rglob("*.nii.gz") if p.is_file()}
        for name, digest in self.labels.items():
            if self.images[name] not in kept:
                faults.append(f"image {name} is gone")
            if digest not in kept:
                faults.append(f"label {name}: the one of before is gone")
            try:
                label = np.asanyarray(nib.load(self._label(name)).dataobj)
                shape = nib.load(self.server.studies / f"{name}.nii.gz").shape
                if label.shape != shape or not set(np.unique(label)) <= {0, 1, 2}:
                    faults.append(f"label {name} is none of this image")
            except Exception as err:
                faults.append(f"label {name} cannot be read: {type(err).__name__}")
        return faults

    def _check_answers(self) -> list[str]:
        faults = []
        for path in ("/info/", "/datastore/?output=all", "/datastore/?output=train"):
            answer = _asked(lambda path=path: self.server.request("GET", path))
            if answer != 200:
                faults.append(f"a good GET {path} is answered {answer}")
        name = next(iter(self.images))
        with tempfile.TemporaryDirectory() as folder:
            try:
                answer = self.server.infer("hippocampus", name)
                if not answer.ok or read_mask(answer.content, Path(folder)).ndim != 3:
                    faults.append(f"a good /infer is answered {answer.status_code}")
            except Exception as err:
                faults.append(f"a good /infer is not answered: {type(err).__name__}")
        return faults

    def _label(self, name: str) -> Path:
        return self.server.studies / "labels" / "final" / f"{name}.nii.gz"

    def _outside(self) -> dict[str, str]:
        """Digests of all files below the root that the server has no reason to write."""
        bundle = self.server.bundle
        own = [self.folder / name for name in ("studies", "cache", "sessions", "tmp", "app", "server.log")]
        own += [self.store.folder] if self.store else []
        own += [bundle / name for name in ("models", "output", "cache", "eval", "logs")]
        found = {}
        for path in self.root.rglob("*"):
            if path.is_file() and not path.is_symlink() and not any(p in own for p in (path, *path.parents)):
                found[str(path.relative_to(self.root))] = _digest(path)
        return found


def _top(folder: Path, mark: str) -> list[Path]:
    return list(folder.glob(f"{mark}*"))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # gone meanwhile
        return ""


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        return {key: tuple(value.shape) for key, value in torch.load(path, "cpu", weights_only=True).items()}
    except Exception:
        return {}


def _final(objects: dict, name: str) -> bool:
    return "final" in objects[name]["labels"]


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _asked(request) -> int | str:
    try:
        return request().status_code
    except Exception as err:
        return type(err).__name__


def _most_memory(pid: int) -> int:
    """Bytes that a process has had in memory at most."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return psutil.Process(pid).memory_info().rss if psutil.pid_exists(pid) else 0
