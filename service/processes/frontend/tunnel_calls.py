"""A front end's side of the calls that it passes on unparsed: see `processes/tunnel.py`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Protocol

from streamcell.service.errors import EngineLost, ServiceError, as_status
from streamcell.service.processes.pipe import Pipe, pack
from streamcell.service.processes.tunnel import (
    ACCEPTED,
    ANSWER,
    BEGIN,
    GONE,
    HALF_CLOSE,
    MESSAGE,
    READ,
    REPLY,
    REPLY_ON,
    REQUEST,
    SKIP,
    STATUS,
    WINDOW,
    pack_pairs,
    unpack_status,
)
from streamcell.service.transport.calls import Call, UnaryCall

_READ_EVERY = 8  # replies that the client has read between two reports of it


class _Passed(Protocol):
    def from_engine(self, kind: int, body: bytes) -> None: ...

    def lost(self, error: EngineLost) -> None: ...


class Tunnel:
    """The calls that a front end has passed on to one engine process. Thread-safe."""

    def __init__(self, pipe: Pipe, on_error: Callable[[ServiceError], None]) -> None:
        """`on_error` is called with each error that the tunnel itself sends to a client."""
        self.pipe = pipe
        self._on_error = on_error
        self._calls: dict[int, _Passed] = {}
        self._numbers = itertools.count(1)
        self._lost: EngineLost | None = None
        self._lock = threading.Lock()

    def add(self, call: _Passed) -> int:
        """Return a new call's number. If the engine process has ended, the call ends too."""
        number = next(self._numbers)
        with self._lock:
            self._calls[number] = call
            lost = self._lost
        if lost is not None:
            self.drop(number)
            self._lose(call, lost)
        return number

    def _lose(self, call: _Passed, error: EngineLost) -> None:
        self._on_error(error)
        call.lost(error)

    def drop(self, number: int) -> None:
        """Forget an ended call."""
        with self._lock:
            self._calls.pop(number, None)

    def on_message(self, kind: int, number: int, body: bytes) -> None:
        """Handle a message from the engine process."""
        call = self._calls.get(number)
        if call is not None:
            call.from_engine(kind, body)

    def lose(self, error: EngineLost) -> None:
        """End every call: the engine process has ended."""
        with self._lock:
            self._lost = error
            calls = list(self._calls.values())
            self._calls.clear()
        for call in calls:
            self._lose(call, error)


class PassedStream:
    """One stream that is passed on (a `calls.StreamHandler`)."""

    def __init__(self, call: Call, tunnel: Tunnel, method: str) -> None:
        self._call = call
        self._tunnel = tunnel
        self._lock = threading.Lock()
        self._on_the_way = 0
        self._paused = False
        self._out = 0
        self._number = tunnel.add(self)
        body = pack(method.encode(), call.peer.encode(), *pack_pairs(call.metadata()))
        tunnel.pipe.send(BEGIN, self._number, body)

    def on_message(self, data: bytes) -> bool:
        """Pass a message on; False, which stops reading, once `WINDOW` messages are not taken yet."""
        self._call.read_on()
        with self._lock:
            self._on_the_way += 1
            self._paused = self._on_the_way >= WINDOW
            paused = self._paused
        self._tunnel.pipe.send(MESSAGE, self._number, data)
        return not paused

    def on_half_close(self) -> None:
        """Pass on that the client sends no more messages."""
        self._tunnel.pipe.send(HALF_CLOSE, self._number)

    def on_end(self, cancelled: bool) -> None:
        """Pass on that the call is over."""
        self._tunnel.drop(self._number)
        self._tunnel.pipe.send(GONE, self._number, bytes((cancelled,)))

    def from_engine(self, kind: int, body: bytes) -> None:
        """Handle a message from the engine process."""
        if kind in (REPLY, REPLY_ON):
            self._call.reply(body, last=kind == REPLY)
            with self._lock:
                self._out += 1
                say = self._out >= _READ_EVERY
            if say and self._call.has_room(self._report_read):
                self._report_read()
        elif kind == ACCEPTED:
            with self._lock:
                self._on_the_way -= int.from_bytes(body, "little")
                resume = self._paused and self._on_the_way < WINDOW
                self._paused = self._paused and not resume
            if resume:
                self._call.resume()
        elif kind == SKIP:
            self._call.skip()
        elif kind == STATUS:
            self._call.end(*unpack_status(body))

    def _report_read(self) -> None:
        with self._lock:
            out, self._out = self._out, 0
        if out:
            self._tunnel.pipe.send(READ, self._number, out.to_bytes(4, "little"))

    def lost(self, error: EngineLost) -> None:
        """End the call: the engine process has ended."""
        self._call.end(*as_status(error))


class PassedUnary:
    """One unary call that is passed on."""

    def __init__(self, call: UnaryCall, tunnel: Tunnel, method: str, data: bytes) -> None:
        self._call = call
        self._tunnel = tunnel
        self._number = tunnel.add(self)
        call.on_cancel(self._cancelled)
        tunnel.pipe.send(REQUEST, self._number, pack(data, method.encode(), call.peer.encode()))

    def _cancelled(self) -> None:
        self._tunnel.drop(self._number)
        self._tunnel.pipe.send(GONE, self._number, b"\1")

    def from_engine(self, kind: int, body: bytes) -> None:
        """Handle the answer."""
        self._tunnel.drop(self._number)
        if kind == ANSWER:
            self._call.answer(body)
        elif kind == STATUS:
            self._call.fail(*unpack_status(body))

    def lost(self, error: EngineLost) -> None:
        """End the call: the engine process has ended."""
        self._call.fail(*as_status(error))
