"""A model as a front end sees it: what streams use of one, and the figures that go to the engine's process."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from streamcell.card import Signature

from .errors import ServiceError
from .pipe import Pipe, pack
from .remote_batcher import RemoteBatcher
from .ring_records import pack_error
from .tunnel import ENDED, ERROR, FAILED, STALLED

# What is kept for the next engine may take, and what a report takes beside its body.
_MOST_KEPT_BYTES = 16 * 2**20
_REPORT_BYTES = 256


@dataclass(frozen=True)
class RemoteFile:
    """What streams use of a `repository.ModelFile`."""

    name: str
    version: str
    signature: Signature
    generation: None = None
    card: None = None


class Reports:
    """A front end's figures, counted by the engine's process. What comes while there is none is kept for the next."""

    def __init__(self) -> None:
        self._pipe: Pipe | None = None
        self._kept: deque[tuple[int, int, bytes]] = deque()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def attach(self, pipe: Pipe | None) -> None:
        """Report through `pipe` from now on."""
        with self._lock:
            self._pipe = pipe
            if pipe is not None:
                self._kept_bytes = 0
            while pipe is not None and self._kept:
                pipe.send(*self._kept.popleft())

    def send(self, kind: int, number: int, body: bytes) -> None:
        """Report something."""
        with self._lock:
            if self._pipe is None:
                self._kept.append((kind, number, body))
                self._kept_bytes += _REPORT_BYTES + len(body)
                while self._kept_bytes > _MOST_KEPT_BYTES:
                    self._kept_bytes -= _REPORT_BYTES + len(self._kept.popleft()[2])
            else:
                self._pipe.send(kind, number, body)

    def stall(self, thread: str, stalled: bool) -> None:
        """The front end's thread makes no progress, or does again."""
        self.send(STALLED, int(stalled), thread.encode())

    def error(self, error: ServiceError) -> None:
        """A client was sent `error` (as `ServerMetrics.error`)."""
        self.send(ERROR, 1, pack_error(error))


class RemoteMetrics:
    """What streams use of `ModelMetrics`."""

    def __init__(self, name: str, version: str, reports: Reports) -> None:
        self._labels = (name.encode(), version.encode())
        self._reports = reports

    def session_opened(self, count: int = 1) -> None:
        """The engine's process counts them as they come."""

    def session_ended(self, reason: str, count: int = 1) -> None:
        """`count` sessions ended."""
        if count:
            self._reports.send(ENDED, count, pack(*self._labels, reason.encode()))

    def request_failed(self, error: ServiceError, requests: int = 1, total_s: float = 0.0) -> None:
        """`requests` requests were refused with `error`."""
        self._reports.send(FAILED, requests, pack(*self._labels, pack_error(error)))


@dataclass(frozen=True)
class RemoteModel:
    """What streams use of a `LoadedModel`."""

    file: RemoteFile
    batcher: RemoteBatcher
    metrics: RemoteMetrics
    max_sessions: int
    max_chunk: int
    # Whether its streams are passed on whole, since they may ask for generation.
    generates: bool
