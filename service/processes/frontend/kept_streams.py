"""The streams that a front end keeps open while there is no engine process: docs/durable-sessions.md."""

from __future__ import annotations

import threading
from typing import Protocol

from streamcell.proto import pb
from streamcell.service.errors import EngineLost, ServerDraining, ServiceError
from streamcell.service.processes.pipe import pack
from streamcell.service.processes.tunnel import PAUSED
from streamcell.service.protocols.native.openings import lasts
from streamcell.service.settings import Settings

from .remote_model import Reports
from .tunnel_calls import Tunnel


class Waiting(Protocol):
    """A stream that waits."""

    def begin(self, tunnel: Tunnel) -> None:
        """Go on with that engine process."""

    def give_up(self, error: ServiceError) -> None:
        """End: no engine process has come, or the server shuts down."""


class KeptStreams:
    """Hands streams that lost their engine process to the next one. Thread-safe."""

    def __init__(self, settings: Settings, reports: Reports) -> None:
        self.count = reports.error  # an error that a client gets
        self._reports = reports
        self._wait_s = settings.linger_s if settings.durability == "process" else 0.0
        self._lock = threading.Lock()
        self._tunnel: Tunnel | None = None  # to the latest engine process
        self._waiting: dict[Waiting, None] = {}
        self._timer: threading.Timer | None = None
        self._draining = False

    def keeps(self, request: pb.OpenSession | pb.OpenFrames) -> bool:
        """True if a stream with that opening may go on with another engine process."""
        return bool(self._wait_s) and lasts(request) and request.durability != pb.DURABILITY_NONE

    @property
    def waiting(self) -> int:
        """The number of streams that wait."""
        return len(self._waiting)

    def attach(self, tunnel: Tunnel) -> None:
        """A new engine process has started: all waiting streams continue with it."""
        with self._lock:
            self._tunnel = tunnel
            waiting = self._take()
        for stream in waiting:
            stream.begin(tunnel)

    def wait(self, stream: Waiting, lost: Tunnel) -> None:
        """Continue `stream` with the engine process after that of `lost`; at once, if there is one."""
        bounded = True
        with self._lock:
            following, draining = self._tunnel, self._draining
            if following is lost:
                following = None
            if following is None and not draining:
                bounded = self._bound_wait()
                if bounded:
                    self._waiting[stream] = None
        if draining:
            stream.give_up(_shutting_down())
        elif following is not None:
            stream.begin(following)
        elif not bounded:
            stream.give_up(_no_process())

    def _bound_wait(self) -> bool:
        """Have the wait end in time; False if the machine gives no thread for that. With the lock held."""
        if self._timer is None:
            timer = threading.Timer(self._wait_s, self.give_up)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:
                return False
            self._timer = timer
        return True

    def forget(self, stream: Waiting) -> None:
        """The client of `stream` has gone."""
        with self._lock:
            self._waiting.pop(stream, None)

    def give_up(self) -> None:
        """End all waiting streams: no engine process has started for as long as sessions stay without a stream."""
        with self._lock:
            waiting = self._take()
        for stream in waiting:
            stream.give_up(_no_process())

    def drain(self) -> None:
        """The server shuts down and starts no further engine process."""
        with self._lock:
            self._draining = True
            waiting = self._take()
        for stream in waiting:
            stream.give_up(_shutting_down())

    def _take(self) -> list[Waiting]:
        waiting, self._waiting = list(self._waiting), {}
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return waiting

    def resumed(self, model: str, version: str, pause_s: float) -> None:
        """Count a stream whose session continued after a pause, to a hundredth of a second."""
        self._reports.send(PAUSED, 1, pack(model.encode(), version.encode(), f"{pause_s:.2f}".encode()))


def _no_process() -> EngineLost:
    return EngineLost("no process runs the models; the session is kept: resume it later")


def _shutting_down() -> ServerDraining:
    return ServerDraining(
        "the server is shutting down and keeps the session: resume it when the server is back"
    )
