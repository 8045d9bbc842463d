"""Calls that came through a front end, as handlers in the engine's process see them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
import structlog

from streamcell.service.processes.pipe import Pipe
from streamcell.service.processes.tunnel import (
    ACCEPTED,
    ANSWER,
    REPLY,
    REPLY_ON,
    ROOM,
    SKIP,
    STATUS,
    WINDOW,
    pack_status,
)
from streamcell.service.transport.answer_once import OneAnswer
from streamcell.service.transport.calls import FAULT, Metadata, StreamHandler, Trailing

_log = structlog.get_logger(__name__)


class TunnelCall:
    """One stream that came through a front end (a `calls.Call`)."""

    gone = "frontend_lost"

    def __init__(self, pipe: Pipe, number: int, peer: str, metadata: Metadata) -> None:
        self.peer = peer
        self.handler: StreamHandler | None = None
        self._pipe = pipe
        self._number = number
        self._metadata = metadata
        self._lock = threading.Lock()
        self._over = False
        self._handed = self._accepted = 0  # messages: to the handler, and of those, known to the front end
        self._unread = 0
        self._wake: Callable[[], None] | None = None

    def metadata(self) -> Metadata:
        """What the client sent before its messages."""
        return self._metadata

    # From the front end

    def message(self, data: bytes) -> None:
        """Hand a message to the handler."""
        handler = self.handler
        if handler is None or self._over:
            return
        self._handed += 1
        try:
            if handler.on_message(data):
                self._accept()
        except Exception as error:  # a bug in a handler ends its call, not the thread
            self.fault(error)

    def half_close(self) -> None:
        """The client sends no more."""
        if self.handler is not None and not self._over:
            try:
                self.handler.on_half_close()
            except Exception as error:
                self.fault(error)

    def read(self, replies: int) -> None:
        """The client has room for so many replies more."""
        with self._lock:
            self._unread -= replies
            wake, self._wake = (self._wake, None) if self._unread < ROOM else (None, self._wake)
        if wake is not None:
            wake()

    def end_of_call(self, cancelled: bool) -> None:
        """The call has gone."""
        handler, self.handler = self.handler, None
        with self._lock:
            self._over = True
            wake, self._wake = self._wake, None
        if handler is not None:
            try:
                handler.on_end(cancelled)
            except Exception as error:
                _log.error("stream handler failed at its end", exc_info=error)
        if wake is not None:
            wake()

    def _accept(self) -> None:
        with self._lock:
            accepted = self._handed - self._accepted
            if accepted < WINDOW // 2:
                return
            self._accepted = self._handed
        self._pipe.send(ACCEPTED, self._number, accepted.to_bytes(4, "little"))

    # From the handler

    def reply(self, data: bytes, *, last: bool = True) -> None:
        """Send one message after those before it."""
        with self._lock:
            if self._over:
                return
            self._unread += 1
        self._pipe.send(REPLY if last else REPLY_ON, self._number, data)

    def skip(self) -> None:
        """The message at hand gets no reply."""
        self._pipe.send(SKIP, self._number)

    def read_on(self) -> None:
        """The front end reads ahead of the replies anyhow."""

    def has_room(self, wake: Callable[[], None]) -> bool:
        """Whether a handler that replies unasked may go on; `wake` is called once it may."""
        with self._lock:
            if self._unread < ROOM or self._over:
                return True
            self._wake = wake
            return False

    def resume(self) -> None:
        """The handler has room: those messages count as taken, too, that came after reading was to stop."""
        self._accept()

    def soon(self, callback: Callable[[], None]) -> bool:
        """Never: the thread that brings messages brings those of every call."""
        return False

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Trailing = ()
    ) -> None:
        """End the call after the replies already given."""
        with self._lock:
            if self._over:
                return
            self._over = True
        self._pipe.send(STATUS, self._number, pack_status(code, details, trailing))

    def fault(self, error: Exception) -> None:
        """A bug in the handler."""
        _log.error("stream handler failed", exc_info=error)
        self.end(grpc.StatusCode.INTERNAL, FAULT)


class TunnelUnary(OneAnswer):
    """One unary call that came through a front end (a `calls.UnaryCall`); `forget` is told when it is answered."""

    def __init__(self, pipe: Pipe, number: int, peer: str, forget: Callable[[int], None]) -> None:
        super().__init__()
        self.peer = peer
        self._pipe = pipe
        self._number = number
        self._forget = forget

    def _first(self) -> bool:
        first = super()._first()
        if first:
            self._forget(self._number)
        return first

    def answer(self, data: bytes) -> None:
        """Send the response with status OK."""
        if self._first():
            self._pipe.send(ANSWER, self._number, data)

    def fail(self, code: grpc.StatusCode, details: str, trailing: Trailing = ()) -> None:
        """End the call with an error."""
        if self._first():
            self._pipe.send(STATUS, self._number, pack_status(code, details, trailing))

    def soon(self, callback: Callable[[], None]) -> bool:
        """Never, as for streams."""
        return False

    def end_of_call(self, cancelled: bool) -> None:
        """The call has gone."""
        self._gone()
