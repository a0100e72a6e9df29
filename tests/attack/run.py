"""An attack on a server of its own: requests in batches, and what must hold after each."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from monailabel.utils.others.generic import md5_digest

from ..integration.realm import realm, serve_with_logins
from ..integration.server import Server, serve, small_bundle
from ..small_disk import mounted
from . import scenes
from .aim import Aim
from .files import Files
from .logins import Logins
from .payloads import expression_mark
from .routes import operations
from .store import Store, store
from .watch import SECRET, Watch
from .wire import Answer, Shot, fire

__all__ = ["Attack", "Report"]

GUARDED = ["phantom_000", "phantom_001"]
SPARE = ["phantom_002", "phantom_003"]
# a file outside, another, 1337 * 1337, a DICOM store's own
_LEAKS = (SECRET.encode(), b"root:x:0:0", b"1787569", b'"DicomAet"')
_ENVIRONMENT = {"MEDSAGA_MAX_IMAGE_GB": "0.2"}  # of which the bombs are a multiple


@dataclass
class Report:
    """What was sent, and what went wrong.

    Attributes:
        statuses: answers by route and status.
        good: answers to requests with nothing wrong in them, to see that the attack gets past the door.
        kinds: requests by kind of payload.
        fields: requests by route and field.
        expressions: fields that got an expression.
        faults: kinds of faults by how often, each with the first example.
        memory: bytes that the server needed at most, beyond what it has after its first answer.
        logins: answers by kind of token and status.
    """

    seed: int
    verbose: bool = False
    requests: int = 0
    statuses: dict[str, Counter] = field(default_factory=dict)
    good: dict[str, Counter] = field(default_factory=dict)
    kinds: Counter = field(default_factory=Counter)
    fields: Counter = field(default_factory=Counter)
    expressions: set[str] = field(default_factory=set)
    faults: dict[str, dict] = field(default_factory=dict)
    memory: int = 0
    seconds: float = 0
    scenes: list[str] = field(default_factory=list)
    logins: dict[str, Counter] = field(default_factory=dict)

    def fault(self, what: str, example: str) -> None:
        if self.verbose and what not in self.faults:
            print(f"FAULT {what}\n      {example}", file=sys.stderr, flush=True)
        entry = self.faults.setdefault(what, {"count": 0, "example": example})
        entry["count"] += 1

    def table(self) -> str:
        """Answers by route, and the faults below."""
        lines = [f"{'Route':<46}{'sent':>6}{'2xx':>6}{'3xx':>6}{'4xx':>6}{'5xx':>6}{'none':>6}{'good':>10}"]
        for route, counts in sorted(self.statuses.items()):
            classes = Counter({0: 0})
            for status, count in counts.items():
                classes[max(status, 0) // 100] += count
            cells = "".join(f"{classes[n]:>6}" for n in (2, 3, 4, 5, 0))
            good = self.good.get(route, Counter())
            taken = sum(count for status, count in good.items() if 0 < status < 400)
            lines.append(f"{route:<46}{counts.total():>6}{cells}{taken:>6} of {good.total()}")
        for who, counts in sorted(self.logins.items()):
            told = ", ".join(f"{count} × {status}" for status, count in sorted(counts.items()))
            lines.append(f"token {who:<24}{told}")
        lines.append(f"\n{self.requests} requests, seed {self.seed}, {self.seconds:.0f} s; {len(self.fields)} fields, ")
        lines[-1] += f"{len(self.expressions)} of them with expressions; memory +{self.memory / 1e6:.0f} MB"
        lines += [f"FAULT ({f['count']}) {what}\n      {f['example']}" for what, f in sorted(self.faults.items())]
        return "\n".join([*lines, "No fault." if not self.faults else f"{len(self.faults)} kinds of faults."])

    def json(self) -> str:
        content = {**self.__dict__, "expressions": sorted(self.expressions)}
        return json.dumps(content, indent=1)


class Attack:
    """Sends a number of requests and watches.

    Args:
        root: an empty folder.
        requests: number of single requests; scenes come on top.
        seed: of all that is random.
        batch: requests between two checks.
        verbose: tell of each batch on standard error.
        long: also stop the server while it saves, fill its disk, and let trainings end that were accepted.
        dicom: the studies are those of a DICOM store, in a network that this thread is in meanwhile.
        logins: the server asks a realm for who may do what.
    """

    def __init__(
        self,
        root: Path,
        requests: int,
        seed: int,
        batch: int = 250,
        long: bool = False,
        verbose: bool = False,
        dicom: bool = False,
        logins: bool = False,
    ) -> None:
        self.dicom, self.with_logins = dicom, logins
        self.store: Store | None = None
        self.logins: Logins | None = None
        self.guarded, self.spare = GUARDED, SPARE
        self.root, self.requests, self.batch, self.long, self.verbose = root, requests, batch, long, verbose
        self.rng = np.random.default_rng(seed)
        self.mark = expression_mark(seed)
        self.report = Report(seed, verbose)
        self.awaited = False  # an expression was taken by what may have started a background task
        outside = root / "outside"
        outside.mkdir(parents=True)
        (outside / "secret.txt").write_text(SECRET)
        (root / "outside.nii.gz").write_bytes(b"not for the server")

    def run(self) -> Report:
        """The whole attack.

        Raises:
            StoreMissingError, PermissionError: a DICOM store cannot be had, see :func:`.store.store`.
        """
        with ExitStack() as stack:
            if self.dicom:
                self.store = stack.enter_context(store(self.root / "store", self.mark, self.rng))
                self.guarded, self.spare = self.store.guarded, self.store.spare
            if self.with_logins:
                self.logins = Logins(stack.enter_context(realm()), self.mark, self.rng)
                self.report.logins = self.logins.answers
            return self._run()

    def _run(self) -> Report:
        start = time.monotonic()
        bundle = small_bundle(self.root / "server")
        watch: Watch | None = None
        sent = lives = 0
        while sent < self.requests and lives < 10:
            lives += 1
            with self._serve(self.root / "server", bundle) as server:
                if watch is None:
                    watch = self._begin(server)
                else:
                    watch.restarted(server)
                    self._checked(watch, "after a restart")
                sent = self._one_life(server, watch, sent)
        if self.long and watch:
            self._stopped_while_saving(bundle, watch)
            self._full_disk()
        self.report.requests = sent
        self.report.memory = watch.most - watch.first if watch else 0
        self.report.seconds = time.monotonic() - start
        return self.report

    @contextmanager
    def _serve(self, folder: Path, bundle: Path | None = None) -> Iterator[Server]:
        """A server of the kind that is attacked."""
        environment, words = dict(_ENVIRONMENT), []
        if self.store:
            environment["MONAI_LABEL_DICOMWEB_CACHE_PATH"] = str(folder / "cache")
            words = ["--studies", self.store.url]
        serving = serve(folder, bundle, environment=environment, words=words)
        if self.logins:
            serving = serve_with_logins(folder, self.logins.realm, bundle, environment, words)
        with serving as server:
            if self.store:
                cache = folder / "cache" / md5_digest(self.store.url)
                server = replace(server, studies=cache, labels=self.store.labels)
            yield server

    def _begin(self, server: Server) -> Watch:
        for name in self.guarded:
            assert server.save_label(name, server.labels / f"{name}.nii.gz", client_id="ann").ok, server.tail()
        if self.store:
            self.store.take_seg()
        (server.studies / "link").symlink_to(self.root / "outside" / "secret.txt")
        (server.studies / "linked").symlink_to(self.root / "outside")
        image = server.studies / f"{self.guarded[0]}.nii.gz"
        labels = {name: (server.labels / f"{name}.nii.gz").read_bytes() for name in (*self.guarded, *self.spare)}
        weights = (server.bundle / "models" / "model.pt").read_bytes()
        files = Files(self.root / "good", image, labels, weights, self.mark)
        found = operations(server.request("GET", "/openapi.json").json())
        self.aim = Aim(found, files, self.guarded, self.spare, self.mark, self.rng, self.store)
        return Watch(self.root, server, self.guarded, self.mark, self.store)

    def _one_life(self, server: Server, watch: Watch, sent: int) -> int:
        """Batches until all is sent or the server no longer answers; returns how many requests were sent."""
        port = int(server.url.rsplit(":", 1)[1])
        while sent < self.requests:
            self._restore(server)
            for _ in range(min(self.batch, self.requests - sent)):
                shot = self.aim.shot(sent)
                if self.logins:
                    self.logins.sign(shot)
                sent += 1
                answer = fire(port, shot)
                self._judge(shot, answer, watch)
                if answer.status <= 0 and not shot.unfinished and self._dead(server):
                    self.report.fault(f"{shot.route}: the server no longer answers", _example(shot))
                    return sent
            self._settle(server)
            for what, count in scenes.at_once(server, self.guarded, self.spare, self.rng).items():
                self.report.fault(f"at once: {what}", f"{count} times")
            for fault in scenes.slow_clients(server):
                self.report.fault(fault, "")
            self._settle(server)
            self._checked(watch, f"after {sent} requests")
            if self.verbose:
                print(f"{sent} requests, {len(self.report.faults)} kinds of faults", file=sys.stderr, flush=True)
            if self._dead(server):
                return sent
        self.report.scenes += [name for name in ("at once", "slow clients") if name not in self.report.scenes]
        return sent

    def _judge(self, shot: Shot, answer: Answer, watch: Watch) -> None:
        report, status = self.report, answer.status
        report.statuses.setdefault(shot.route, Counter())[status] += 1
        report.kinds[shot.kind] += 1
        if shot.kind == "good":
            report.good.setdefault(shot.route, Counter())[status] += 1
        report.fields[f"{shot.route} {shot.field}"] += 1
        if shot.kind.startswith("expression"):
            report.expressions.add(f"{shot.route} {shot.field}")
        if shot.claim:
            report.fields[shot.claim[0]] += 1
            report.expressions |= {shot.claim[0]} if shot.claim[1].startswith("expression") else set()
        for fault in self.logins.judge(shot, answer) if self.logins else []:
            report.fault(fault, _example(shot, answer))
        if status >= 500 or (status == 0 and not shot.unfinished):
            report.fault(f"{shot.route} [{shot.kind}] -> {status or 'no answer'}", _example(shot, answer))
        # what a background task would evaluate shows only when it gets there
        self.awaited |= shot.kind.startswith("expression") and shot.method == "POST" and status == 200
        if shot.expects_refusal and 0 < status < 400:
            report.fault(f"{shot.route} [foreign {shot.field}] -> {status}", _example(shot))
        allowed = answer.headers.get("access-control-allow-origin", "")
        if shot.kind == "header" and shot.field == "Origin" and allowed:
            report.fault(f"{shot.route} [foreign Origin] is allowed to read", f"allow-origin: {allowed}")
        for leak in _LEAKS:
            if leak in answer.body:
                report.fault(f"{shot.route} [{shot.kind}]: shows {leak.decode()}", _example(shot))
        if os.path.exists(watch.folder / self.mark):
            report.fault(f"{shot.route} [{shot.kind}]: ran code", _example(shot))
            watch.marks()

    def _checked(self, watch: Watch, when: str) -> None:
        for fault in watch.check():
            self.report.fault(fault, when)

    def _restore(self, server: Server) -> None:
        """Put back what requests may delete, and start a session."""
        if self.store:
            new = self.store.refill()
            self.report.fields.update(self.store.tried)
            self.report.expressions |= self.store.tried
            labels = self.aim.files.labels
            labels.update({name: (server.labels / f"{name}.nii.gz").read_bytes() for name in self.spare})
            for fault in scenes.odd_series(server, new, self.guarded[0]):
                self.report.fault(fault, "")
        for name in [] if self.store else SPARE:
            if not (server.studies / f"{name}.nii.gz").exists():
                server.add_image(name, server.labels.parent / "imagesTr" / f"{name}.nii.gz")
        answer = server.request("PUT", "/session/", files={"files": ("a.nii.gz", self.aim.image)})
        self.aim.session = answer.json().get("session_id", "none") if answer.ok else "none"

    def _settle(self, server: Server) -> None:
        """End background tasks; in a long attack let trainings get as far as reading their settings first."""
        try:
            if self.long and self.awaited:
                end = time.monotonic() + 60
                while time.monotonic() < end and self._running(server, "/train/"):
                    time.sleep(0.5)
            self.awaited = False
            for path in ("/train/", "/batch/infer", "/scoring/"):
                for _ in range(100):
                    server.request("DELETE", path)
                    if not self._running(server, path):
                        break
        except OSError as err:
            self.report.fault("background tasks cannot be ended", f"{type(err).__name__}")

    @staticmethod
    def _running(server: Server, path: str) -> bool:
        return server.request("GET", path, params={"check_if_running": True}).status_code == 200

    @staticmethod
    def _dead(server: Server) -> bool:
        if server.process.poll() is not None:
            return True
        try:
            server.request("GET", "/info/")
            return False
        except OSError:
            return True

    def _stopped_while_saving(self, bundle: Path, watch: Watch) -> None:
        for after in (0.1, 0.5):
            with self._serve(self.root / "server", bundle) as server:
                scenes.stop_while_saving(server, self.guarded, after)
            with self._serve(self.root / "server", bundle) as server:
                watch.restarted(server)
                self._checked(watch, f"after SIGTERM {after} s into saving")
        self.report.scenes.append("stop while saving")

    def _full_disk(self) -> None:
        with mounted(self.root / "small" / "server", "150m") as disk:
            if disk is None:
                self.report.scenes.append("full disk: skipped, mounting needs root")
                return
            with self._serve(disk) as server:
                for name in self.guarded:
                    assert server.save_label(name, server.labels / f"{name}.nii.gz", client_id="ann").ok
                watch = Watch(self.root / "small", server, self.guarded, self.mark, self.store)
                for fault in scenes.with_a_full_disk(server, disk, self.guarded):
                    self.report.fault(fault, "")
                self._checked(watch, "after a full disk")
        self.report.scenes.append("full disk")


def _example(shot: Shot, answer: Answer | None = None) -> str:
    said = f" => {answer.body[:150]!r}" if answer and answer.body else ""
    return f"{shot.method} {shot.target[:150]} {shot.field} = {shot.shown}{said}"
