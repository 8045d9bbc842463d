"""Calls passed on by a front end, as the handlers in the engine process use them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
import structlog

from streamcell.service.access.identity import Identity
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
from streamcell.service.transport.answer_once import AnswerOnce
from streamcell.service.transport.calls import FAULT, Metadata, StreamHandler, Trailing

_log = structlog.get_logger(__name__)


class TunnelCall:
    """One stream passed on by a front end (a `calls.Call`)."""

    gone = "frontend_lost"

    def __init__(
        self, pipe: Pipe, number: int, peer: str, caller: Identity, metadata: Metadata, *, again: bool
    ) -> None:
        """`again`: an earlier engine process has had the call."""
        self.peer = peer
        self.caller = caller
        self.again = again
        self.handler: StreamHandler | None = None
        self._pipe = pipe
        self._number = number
        self._metadata = metadata
        self._lock = threading.Lock()
        self._over = False
        self._handed = self._accepted = (
            0  # messages given to the handler; those of them that the front end knows of
        )
        self._unread = 0
        self._wake: Callable[[], None] | None = None

    def metadata(self) -> Metadata:
        """The client's metadata."""
        return self._metadata

    # From the front end

    def message(self, data: bytes) -> None:
        """Give a message to the handler."""
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
        """Note that the client sends no more messages."""
        if self.handler is not None and not self._over:
            try:
                self.handler.on_half_close()
            except Exception as error:
                self.fault(error)

    def read(self, replies: int) -> None:
        """Note that the client has read `replies` more replies."""
        with self._lock:
            self._unread -= replies
            wake, self._wake = (self._wake, None) if self._unread < ROOM else (None, self._wake)
        if wake is not None:
            wake()

    def end_of_call(self, cancelled: bool) -> None:
        """Note that the call is over."""
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

    def hand_to(self, handler: StreamHandler) -> None:
        """Let another handler take the later messages and the end."""
        self.handler = handler

    def reply(self, data: bytes, *, last: bool = True) -> None:
        """Send one message after those before it."""
        with self._lock:
            if self._over:
                return
            self._unread += 1
        self._pipe.send(REPLY if last else REPLY_ON, self._number, data)

    def skip(self) -> None:
        """Note that the current message gets no reply."""
        self._pipe.send(SKIP, self._number)

    def read_on(self) -> None:
        """Nothing to do: the front end always reads ahead of the replies."""

    def has_room(self, wake: Callable[[], None]) -> bool:
        """True if a generating handler may continue: the client has read most replies. Else `wake` is called later."""
        with self._lock:
            if self._unread < ROOM or self._over:
                return True
            self._wake = wake
            return False

    def resume(self) -> None:
        """Accept the messages that arrived after reading was to stop: the handler has room again."""
        self._accept()

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """False: one thread brings the messages of all calls, so nothing may run on it."""
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
        """Log a bug in the handler and end the call."""
        _log.error("stream handler failed", exc_info=error)
        self.end(grpc.StatusCode.INTERNAL, FAULT)


class TunnelUnary(AnswerOnce):
    """One unary call passed on by a front end (a `calls.UnaryCall`); calls `forget` when it is answered."""

    def __init__(
        self, pipe: Pipe, number: int, peer: str, caller: Identity, forget: Callable[[int], None]
    ) -> None:
        super().__init__()
        self.peer = peer
        self.caller = caller
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

    def metadata(self) -> Metadata:
        """None: the front end keeps it."""
        return ()

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """False, as for streams."""
        return False

    def end_of_call(self, cancelled: bool) -> None:
        """Note that the call is over."""
        self._gone()
