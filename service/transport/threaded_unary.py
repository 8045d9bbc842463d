"""The unary calls of the lane that uses only grpcio's public API; see `threaded_lane.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import structlog

from streamcell.service.errors import as_status
from streamcell.service.threads import NoThread, started

from .calls import FAULT, Metadata, OnRequest, Trailing
from .first_messages import FirstMessages
from .guard import Guard
from .in_flight import FRAMING_BYTES, InFlight

_log = structlog.get_logger(__name__)

Status = tuple[grpc.StatusCode, str, Trailing]


class UnaryCall:
    """One unary call (a `calls.UnaryCall`): on the wire, a stream of one message each way."""

    def __init__(
        self, context: grpc.ServicerContext, first: FirstMessages, in_flight: InFlight, guard: Guard
    ) -> None:
        self.peer: str = context.peer()
        self.caller = guard.unchecked
        self._guard = guard
        self.messages = 0
        self._held = 0  # bytes of the request, then of the response
        self._connection = in_flight.join(self)
        self._context = context
        self._first_message = first
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._cancelled = False
        self._data = b""
        self._status: Status | None = None
        self._callback: Callable[[], None] | None = None

    def run(self, on_request: OnRequest, requests: Iterator[bytes]) -> Iterator[bytes]:
        """Wait for the answer and return it; None, with a status set, if there is none."""
        if not self._context.add_callback(self._on_over):
            self._connection.leave(self)
            return
        self._first_message.watch(self, self.fail)
        caller = self._guard.caller(
            tuple(self._context.invocation_metadata()), self._context.auth_context, self.fail, self.peer
        )
        if caller is not None:
            self.caller = caller
            # Read on another thread, so that the call can be ended although no message arrives.
            try:
                started("call-reader", self._read, on_request, requests)
            except NoThread as error:
                self._first_message.on_error(error)
                self.fail(*as_status(error))
        self._done.wait()
        self._first_message.unwatch(self)
        if self._status is not None:
            set_status(self._context, self._status)
        elif not self._cancelled:
            yield self._data

    def _read(self, on_request: OnRequest, requests: Iterator[bytes]) -> None:
        try:
            for data in until_gone(requests):
                self._first_message.unwatch(self)
                self.messages = 1
                self._held = len(data)
                self._connection.take(self._held + FRAMING_BYTES)
                on_request(self, data)
                return
            self.fail(grpc.StatusCode.UNIMPLEMENTED, "a unary call carries one message; none came")
        except Exception as error:
            self._fault(error)

    def _fault(self, error: Exception) -> None:
        _log.error("unary handler failed", exc_info=error)
        self.fail(grpc.StatusCode.INTERNAL, FAULT)

    def metadata(self) -> Metadata:
        """The metadata that the client sent."""
        return tuple(self._context.invocation_metadata())

    @property
    def half_open(self) -> bool:
        """True if its request may be in flight."""
        return not self.messages and not self._done.is_set()

    @property
    def sent(self) -> int:
        """Responses sent; the call ends with its only one."""
        return 0

    def held(self) -> tuple[int, int]:
        """Bytes of its request or, once it is answered, of its unsent response."""
        return (0, self._held) if self._done.is_set() else (self._held, 0)

    def read_again(self) -> None:
        """Nothing to do: it reads once."""

    def cut(self, code: grpc.StatusCode, details: str, trailing: Trailing, reason: str) -> None:
        """End the call now."""
        self.fail(code, details, trailing)

    def drop(self) -> None:
        """End the call, after `cut`, even if its client reads no response."""
        self._context.cancel()

    def _on_over(self) -> None:
        self._connection.leave(self)
        with self._lock:
            if self._done.is_set():
                return
            self._cancelled = True
            callback, self._callback = self._callback, None
            self._done.set()
        if callback is not None:
            try:
                callback()
            except Exception as error:
                _log.error("unary handler failed at its cancellation", exc_info=error)

    def answer(self, data: bytes) -> None:
        """Send the response with status OK."""
        self._first(data, None)

    def fail(self, code: grpc.StatusCode, details: str, trailing: Trailing = ()) -> None:
        """End the call with an error."""
        self._first(b"", (code, details, trailing))

    def _first(self, data: bytes, status: Status | None) -> None:
        with self._lock:
            if not self._done.is_set():
                self._data, self._status = data, status
                self._held = len(data)
                self._callback = None
                self._done.set()

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """False: each call's messages have their own thread."""
        return False

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` if the call ends before it is answered."""
        with self._lock:
            if not self._done.is_set():
                self._callback = callback
            if not self._cancelled:
                return
        callback()


def until_gone(requests: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the requests; grpcio ends those of a cancelled call with an error."""
    with suppress(StopIteration, grpc.RpcError):
        while True:
            yield next(requests)  # no variable holds it until the next one


def set_status(context: grpc.ServicerContext, status: Status) -> None:
    """Set `status` as the call's end, once its handler returns."""
    code, details, trailing = status
    context.set_code(code)
    context.set_details(details)
    context.set_trailing_metadata(tuple(trailing))
