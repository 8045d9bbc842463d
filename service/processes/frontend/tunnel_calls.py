"""A front end's side of the calls that it passes on unparsed: see `processes/tunnel.py`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Protocol

import grpc

from streamcell.service.access.identity import AUTHORIZATION, Identity, pack_identity
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
from streamcell.service.transport.calls import Metadata, Trailing, UnaryCall

_READ_EVERY = 8  # replies that the client has read between two reports of it


class _Passed(Protocol):
    def from_engine(self, kind: int, body: bytes) -> None: ...

    def lost(self, error: EngineLost) -> None: ...


class PassingCall(Protocol):
    """The parts of a `calls.Call` that a stream which is passed on needs."""

    peer: str
    caller: Identity

    def metadata(self) -> Metadata: ...

    def reply(self, data: bytes, *, last: bool = True) -> None: ...

    def skip(self) -> None: ...

    def read_on(self) -> None: ...

    def has_room(self, wake: Callable[[], None]) -> bool: ...

    def resume(self) -> None: ...

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Trailing = ()
    ) -> None: ...


class Tunnel:
    """The calls that a front end has passed on to one engine process. Thread-safe."""

    def __init__(self, pipe: Pipe, on_error: Callable[[ServiceError], None]) -> None:
        """`on_error` is called with each error that the tunnel itself sends to a client."""
        self.pipe = pipe
        self.on_error = on_error
        self._calls: dict[int, _Passed] = {}
        self._numbers = itertools.count(1)
        self._lost: EngineLost | None = None
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """True if the engine process has ended."""
        return self._lost is not None

    def number(self) -> int:
        """A new call's number."""
        return next(self._numbers)

    def add(self, number: int, call: _Passed) -> None:
        """Pass `call` what arrives for it. If the engine process has ended, the call is lost at once."""
        with self._lock:
            lost = self._lost
            if lost is None:
                self._calls[number] = call
        if lost is not None:
            call.lost(lost)

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
        """Every call is lost: the engine process has ended."""
        with self._lock:
            self._lost = error
            calls = list(self._calls.values())
            self._calls.clear()
        for call in calls:
            call.lost(error)


class PassedStream:
    """One stream that is passed on (a `calls.StreamHandler`). Messages may come once it has begun."""

    def __init__(self, call: PassingCall, tunnel: Tunnel, method: str) -> None:
        self.tunnel = tunnel
        self._call = call
        self._method = method
        self._lock = threading.Lock()
        self._on_the_way = 0
        self._paused = False
        self._out = 0
        self._number = tunnel.number()

    def begin(self, kind: int = BEGIN) -> PassedStream:
        """Begin the call in the engine process; `kind`: how. Returns itself."""
        call = self._call
        self.tunnel.add(self._number, self)
        # Who calls is a part of its own: no metadata can take its place. The engine process needs no secret.
        pairs = [pair for pair in call.metadata() if pair[0] != AUTHORIZATION]
        caller = pack_identity(call.caller)
        body = pack(self._method.encode(), call.peer.encode(), caller, *pack_pairs(pairs))
        self.tunnel.pipe.send(kind, self._number, body)
        return self

    def on_message(self, data: bytes) -> bool:
        """Pass a message on; False, which stops reading, once `WINDOW` messages are not taken yet."""
        self._call.read_on()
        with self._lock:
            self._on_the_way += 1
            self._paused = self._on_the_way >= WINDOW
            paused = self._paused
        self.tunnel.pipe.send(MESSAGE, self._number, data)
        return not paused

    def on_half_close(self) -> None:
        """Pass on that the client sends no more messages."""
        self.tunnel.pipe.send(HALF_CLOSE, self._number)

    def on_end(self, cancelled: bool) -> None:
        """Pass on that the call is over."""
        self.tunnel.drop(self._number)
        self.tunnel.pipe.send(GONE, self._number, bytes((cancelled,)))

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
            self.tunnel.pipe.send(READ, self._number, out.to_bytes(4, "little"))

    def lost(self, error: EngineLost) -> None:
        """End the call: the engine process has ended."""
        self.tunnel.on_error(error)
        self._call.end(*as_status(error))


class PassedUnary:
    """One unary call that is passed on."""

    def __init__(self, call: UnaryCall, tunnel: Tunnel, method: str, data: bytes) -> None:
        self._call = call
        self._tunnel = tunnel
        self._number = tunnel.number()
        tunnel.add(self._number, self)
        call.on_cancel(self._cancelled)
        tunnel.pipe.send(
            REQUEST,
            self._number,
            pack(data, method.encode(), call.peer.encode(), pack_identity(call.caller)),
        )

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
        self._tunnel.on_error(error)
        self._call.fail(*as_status(error))
