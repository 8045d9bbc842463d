"""One front end, as the engine's process sees it: its rings, its pipe, and the calls that it passes on."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping, Sequence

import structlog

from streamcell.service.model_host import ModelHost
from streamcell.service.processes.pipe import Pipe, unpack
from streamcell.service.processes.ring_records import unpack_error
from streamcell.service.processes.tunnel import (
    ALL_READ,
    BEGIN,
    ENDED,
    ERROR,
    FAILED,
    GONE,
    HALF_CLOSE,
    IN_FLIGHT,
    LANE,
    LINES_LOST,
    MESSAGE,
    READ,
    READ_ALL,
    REQUEST,
    SERVED,
    STALLED,
    unpack_pairs,
)  # fmt: skip
from streamcell.service.transport.calls import Handler

from .ring_sessions import RingSessions
from .tunnel_calls import TunnelCall, TunnelUnary
from .tunnel_lane import TunnelLane

_log = structlog.get_logger(__name__)


class Link:
    """Takes what one front end sends, on a thread of its own, until that has gone."""

    def __init__(
        self,
        pipe: Pipe,
        holder: int,
        host: ModelHost,
        ring_sessions: Mapping[tuple[str, str], RingSessions],
        lane: TunnelLane,
        methods: Mapping[str, Handler],
    ) -> None:
        self._pipe = pipe
        self._holder = holder
        self._host = host
        self._ring_sessions = ring_sessions
        self._lane = lane
        self._methods = methods
        self._calls: dict[int, TunnelCall | TunnelUnary] = {}
        self._all_read = threading.Event()
        self._asked = 0

    def start(self, on_lost: Callable[[], None]) -> None:
        """Begin to take messages; `on_lost` is called once the front end has gone and its calls have ended."""

        def lost() -> None:
            self._lost()
            on_lost()

        self._pipe.start(f"frontend-{self._holder}", self._came, lost)

    def tell_served(self, name: str, served: bool) -> None:
        """A model is served from now on, or no longer."""
        self._pipe.send(SERVED, int(served), name.encode())

    def tell_stalled(self, thread: str, stalled: bool) -> None:
        """A thread of this process makes no progress, or does again."""
        self._pipe.send(STALLED, int(stalled), thread.encode())

    def ask(self) -> None:
        """Ask whether what has come to its sockets has been passed on: see `all_read`."""
        self._all_read.clear()
        self._asked += 1
        self._pipe.send(READ_ALL, self._asked)

    def all_read(self, patience_s: float) -> bool:
        """Wait for the answer to the last `ask`; True also if the front end goes. False: it takes too long."""
        return self._all_read.wait(patience_s)

    def _came(self, kind: int, number: int, body: bytes, fds: Sequence[int]) -> None:
        call = self._calls.get(number)
        if isinstance(call, TunnelCall) and kind == MESSAGE:
            call.message(body)
        elif isinstance(call, TunnelCall) and kind == READ:
            call.read(int.from_bytes(body, "little"))
        elif isinstance(call, TunnelCall) and kind == HALF_CLOSE:
            call.half_close()
        elif kind == BEGIN:
            method, peer, *pairs = unpack(body)
            begun = TunnelCall(self._pipe, number, peer.decode(), unpack_pairs(pairs))
            self._calls[number] = begun
            self._lane.begin(self._methods[method.decode()], begun)
        elif kind == REQUEST:
            data, method, peer = unpack(body)
            self._request(method.decode(), number, peer.decode(), data)
        elif kind == GONE:
            call = self._calls.pop(number, None)
            if call is not None:
                if isinstance(call, TunnelCall):
                    call.gone = "cancelled"
                call.end_of_call(body != b"\0")
        elif kind == ALL_READ:
            if number == self._asked:
                self._all_read.set()
        elif kind in (LANE, ENDED, ERROR, FAILED, LINES_LOST, STALLED, IN_FLIGHT):
            self._report(kind, number, body)

    def _request(self, method: str, number: int, peer: str, data: bytes) -> None:
        call = TunnelUnary(self._pipe, number, peer, self._forget)
        self._calls[number] = call
        self._lane.request(self._methods[method], call, data)

    def _forget(self, number: int) -> None:
        self._calls.pop(number, None)

    def _report(self, kind: int, number: int, body: bytes) -> None:
        """Figures that only a front end has; `number` is how many."""
        if kind == LANE:
            self._host.metrics.lane = body.decode()
            return
        if kind == STALLED:
            self._host.metrics.stall("frontend", str(self._holder), bool(number))
            return
        if kind == IN_FLIGHT:
            self._host.memory_figures.report(str(self._holder), *struct.unpack("<QQ", body))
            return
        if kind == LINES_LOST:
            self._host.lost_lines.add(body.decode(), number)
            return
        if kind == ERROR:
            self._host.metrics.error(unpack_error(body), number)
            return
        model, version, what = unpack(body)
        sessions = self._ring_sessions.get((model.decode(), version.decode()))
        if sessions is None:
            return
        if kind == ENDED:
            sessions.model.metrics.session_ended(what.decode(), number)
        else:
            sessions.model.metrics.request_failed(unpack_error(what), number)

    def _lost(self) -> None:
        _log.info("front end gone", holder=self._holder)
        self._host.metrics.stall("frontend", str(self._holder), False)
        self._host.memory_figures.forget(str(self._holder))
        for sessions in self._ring_sessions.values():
            sessions.lose(self._holder)
        calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.end_of_call(cancelled=True)
        self._asked = -1
        self._all_read.set()
