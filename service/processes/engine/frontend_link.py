"""The engine process's link to one front end: its rings, its pipe, and the calls that it passes on."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping, Sequence

import structlog

from streamcell.service.access.identity import unpack_identity
from streamcell.service.model_host import ModelHost
from streamcell.service.processes.pipe import Pipe, unpack
from streamcell.service.processes.ring_records import unpack_error
from streamcell.service.processes.tunnel import (
    ALL_READ,
    BEGIN,
    BEGIN_AGAIN,
    ENDED,
    ERROR,
    FAILED,
    GONE,
    HALF_CLOSE,
    IN_FLIGHT,
    LANE,
    LINES_LOST,
    MESSAGE,
    PAUSED,
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
    """Handles one front end's messages, on a thread of its own, until the front end ends."""

    def __init__(
        self,
        pipe: Pipe,
        process_number: int,
        host: ModelHost,
        ring_sessions: Mapping[tuple[str, str], RingSessions],
        lane: TunnelLane,
        methods: Mapping[str, Handler],
    ) -> None:
        self._pipe = pipe
        self._process_number = process_number
        self._host = host
        self._ring_sessions = ring_sessions
        self._lane = lane
        self._methods = methods
        self._calls: dict[int, TunnelCall | TunnelUnary] = {}
        self._all_read = threading.Event()
        self._asked = 0

    def start(self, on_lost: Callable[[], None]) -> None:
        """Begin to read messages; `on_lost` is called once the front end and its calls have ended."""

        def lost() -> None:
            self._lost()
            on_lost()

        self._pipe.start(f"frontend-{self._process_number}", self._on_message, lost)

    def report_served(self, name: str, served: bool) -> None:
        """Tell the front end that a model became available or unavailable."""
        self._pipe.send(SERVED, int(served), name.encode())

    def report_stalled(self, thread: str, stalled: bool) -> None:
        """Tell the front end that a thread of this process makes no progress, or makes progress again."""
        self._pipe.send(STALLED, int(stalled), thread.encode())

    def ask(self) -> None:
        """Ask the front end to answer once it has passed on all that its sockets hold now: see `all_read`."""
        self._all_read.clear()
        self._asked += 1
        self._pipe.send(READ_ALL, self._asked)

    def all_read(self, patience_s: float) -> bool:
        """Wait for the answer to the last `ask`; False if it takes too long. True if the front end ends."""
        return self._all_read.wait(patience_s)

    def _on_message(self, kind: int, number: int, body: bytes, fds: Sequence[int]) -> None:
        call = self._calls.get(number)
        if isinstance(call, TunnelCall) and kind == MESSAGE:
            call.message(body)
        elif isinstance(call, TunnelCall) and kind == READ:
            call.read(int.from_bytes(body, "little"))
        elif isinstance(call, TunnelCall) and kind == HALF_CLOSE:
            call.half_close()
        elif kind in (BEGIN, BEGIN_AGAIN):
            method, peer, caller, *pairs = unpack(body)
            begun = TunnelCall(
                self._pipe,
                number,
                peer.decode(),
                unpack_identity(caller),
                unpack_pairs(pairs),
                again=kind == BEGIN_AGAIN,
            )
            self._calls[number] = begun
            self._lane.begin(self._methods[method.decode()], begun)
        elif kind == REQUEST:
            data, method, peer, caller = unpack(body)
            request = TunnelUnary(self._pipe, number, peer.decode(), unpack_identity(caller), self._forget)
            self._calls[number] = request
            self._lane.request(self._methods[method.decode()], request, data)
        elif kind == GONE:
            call = self._calls.pop(number, None)
            if call is not None:
                if isinstance(call, TunnelCall):
                    call.gone = "cancelled"
                call.end_of_call(body != b"\0")
        elif kind == ALL_READ:
            if number == self._asked:
                self._all_read.set()
        elif kind in (LANE, ENDED, ERROR, FAILED, LINES_LOST, STALLED, IN_FLIGHT, PAUSED):
            self._report(kind, number, body)

    def _forget(self, number: int) -> None:
        self._calls.pop(number, None)

    def _report(self, kind: int, number: int, body: bytes) -> None:
        """Record metrics that only the front end knows."""
        if kind == LANE:
            self._host.metrics.lane = body.decode()
            return
        if kind == STALLED:
            self._host.metrics.stall("frontend", str(self._process_number), bool(number))
            return
        if kind == IN_FLIGHT:
            self._host.memory_figures.report(str(self._process_number), *struct.unpack("<QQ", body))
            return
        if kind == LINES_LOST:
            self._host.lost_lines.add(body.decode(), number)
            return
        if kind == ERROR:
            self._host.metrics.error(unpack_error(body), number)
            return
        model, version, what = unpack(body)
        if kind == PAUSED:
            self._host.metrics.streams_paused(model.decode(), version.decode(), float(what), number)
            return
        sessions = self._ring_sessions.get((model.decode(), version.decode()))
        if sessions is None:
            return
        if kind == ENDED:
            sessions.model.metrics.session_ended(what.decode(), number)
        else:
            sessions.model.metrics.request_failed(unpack_error(what), number)

    def _lost(self) -> None:
        _log.info("front end ended", process_number=self._process_number)
        self._host.metrics.stall("frontend", str(self._process_number), False)
        self._host.memory_figures.forget(str(self._process_number))
        for sessions in self._ring_sessions.values():
            sessions.lose(self._process_number)
        calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.end_of_call(cancelled=True)
        self._asked = -1
        self._all_read.set()
