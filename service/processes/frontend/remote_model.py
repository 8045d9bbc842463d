"""A model in a front end: the parts of it that streams use, and the metrics sent to the engine process."""

from __future__ import annotations

import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from streamcell.card import Signature
from streamcell.service.errors import ServiceError
from streamcell.service.logs.configure import lines_lost
from streamcell.service.processes.pipe import Pipe, pack
from streamcell.service.processes.ring_records import pack_reason
from streamcell.service.processes.tunnel import ENDED, ERROR, FAILED, IN_FLIGHT, LINES_LOST, STALLED

from .remote_batcher import RemoteBatcher

_TOGETHER_S = 0.2
_LOST_LINES_S = 1.0


@dataclass(frozen=True)
class RemoteFile:
    """The parts of a `repository.ModelFile` that streams use."""

    name: str
    version: str
    signature: Signature
    generation: None = None
    card: None = None


class Reports:
    """Sends a front end's metrics to the engine process.

    While there is no engine process, or it does not keep up, counts are added up here. Their number is bounded: clients
    cannot add kinds.
    """

    def __init__(self) -> None:
        self.in_flight: Callable[[], tuple[int, int]] = lambda: (0, 0)  # bytes, connections held back
        self._reported_in_flight = (0, 0)
        self._pipe: Pipe | None = None
        self._kept: Counter[tuple[int, bytes]] = Counter()
        self._stalls: dict[bytes, bool] = {}  # by thread, not yet sent
        self._lock = threading.Lock()
        self._some = threading.Event()
        threading.Thread(target=self._catch_up, name="reports", daemon=True).start()

    def attach(self, pipe: Pipe) -> None:
        """Report through `pipe` from now on."""
        with self._lock:
            self._pipe = pipe
            self._reported_in_flight = (0, 0)
            self._send_kept()

    def detach(self, pipe: Pipe) -> None:
        """The engine process of `pipe` has ended. That of a later pipe may be attached already, and stays so."""
        with self._lock:
            if self._pipe is pipe:
                self._pipe = None

    def send(self, kind: int, number: int, body: bytes) -> None:
        """Send a count of `number` for `kind` and `body`."""
        with self._lock:
            if self._pipe is not None and not self._pipe.behind:
                self._pipe.send(kind, number, body)
                return
            self._kept[kind, body] += number
        self._some.set()

    def _send_kept(self) -> None:
        while self._pipe is not None and self._stalls and not self._pipe.behind:
            thread, stalled = self._stalls.popitem()
            self._pipe.send(STALLED, int(stalled), thread)
        while self._pipe is not None and self._kept and not self._pipe.behind:
            (kind, body), number = self._kept.popitem()
            self._pipe.send(kind, number, body)
        now = self.in_flight()
        if self._pipe is not None and not self._pipe.behind and now != self._reported_in_flight:
            self._reported_in_flight = now
            self._pipe.send(IN_FLIGHT, 0, struct.pack("<QQ", *now))

    def _catch_up(self) -> None:
        reported: Counter[str] = Counter()
        while True:
            self._some.wait(_LOST_LINES_S)
            time.sleep(_TOGETHER_S)
            lost = lines_lost()
            with self._lock:
                for reason, lines in (lost - reported).items():
                    self._kept[LINES_LOST, reason.encode()] += lines
                reported = lost
                self._send_kept()
                if not self._kept and not self._stalls:
                    self._some.clear()

    def stall(self, thread: str, stalled: bool) -> None:
        """Report that a thread of this front end makes no progress, or makes progress again."""
        with self._lock:
            self._stalls[thread.encode()] = stalled
            self._send_kept()
        self._some.set()

    def error(self, error: ServiceError) -> None:
        """Count `error` as sent to a client (like `ServerMetrics.error`)."""
        self.send(ERROR, 1, pack_reason(error))


class RemoteMetrics:
    """The parts of `ModelMetrics` that streams use."""

    def __init__(self, name: str, version: str, reports: Reports) -> None:
        self._labels = (name.encode(), version.encode())
        self._reports = reports

    def session_opened(self, count: int = 1) -> None:
        """Nothing to do: the engine process counts opened sessions."""

    def session_resumed(self, source: str, result: str, replies: int = 0) -> None:
        """Nothing to do: resumable sessions are the engine process's."""

    def session_ended(self, reason: str, count: int = 1) -> None:
        """Count `count` ended sessions."""
        if count:
            self._reports.send(ENDED, count, pack(*self._labels, reason.encode()))

    def request_failed(self, error: ServiceError, requests: int = 1, total_s: float = 0.0) -> None:
        """Count `requests` requests refused with `error`."""
        self._reports.send(FAILED, requests, pack(*self._labels, pack_reason(error)))


@dataclass(frozen=True)
class RemoteModel:
    """The parts of a `LoadedModel` that streams use."""

    file: RemoteFile
    batcher: RemoteBatcher
    metrics: RemoteMetrics
    max_sessions: int
    max_batch: int
    max_chunk: int
    # True if its streams are passed on unparsed: they may ask for generation, or bring values for their opening.
    unparsed: bool
