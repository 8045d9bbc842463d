"""The fast lane's unary calls, and what its streams share with them; see `fast_stream.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc

from .answer_once import AnswerOnce
from .calls import FAULT, Metadata, OnRequest, Trailing
from .completion_queue import AGAIN, ARRIVALS, call_soon, expect, peer_of
from .first_messages import FirstMessages
from .guard import Guard
from .in_flight import FRAMING_BYTES, InFlight
from .reading_turns import Line, ReadingTurns

_log = structlog.get_logger(__name__)

PASSES = 128  # of a callback through the queue, at most


class UnaryCall(AnswerOnce):
    """One unary call on the fast lane (a `calls.UnaryCall`): on the wire, a stream of one message each way."""

    __slots__ = (
        "_answered", "_call", "_closed", "_connection", "_first_message", "_held", "_line", "_metadata", "_on_request",
        "_sent", "_status", "caller", "messages", "peer",
    )  # fmt: skip

    def __init__(
        self,
        call: Any,
        metadata: Metadata,
        on_request: OnRequest,
        first: FirstMessages,
        in_flight: InFlight,
        guard: Guard,
        turns: ReadingTurns,
    ) -> None:
        """Begin `call`, the core's. On the serving thread."""
        super().__init__()
        ARRIVALS.calls += 1
        self.peer: str = call.peer().decode(errors="replace")
        self.caller = guard.unchecked
        self._call = call
        self._metadata = metadata
        self._on_request = on_request
        self._first_message = first
        self._held = self.messages = 0  # bytes of the request, then of the response; requests received
        self._answered = False  # True: `_held` are bytes of the response
        self._status = (0, "")
        self._sent = False  # the status
        self._closed = False  # the client has gone, or has all that was sent to it
        self._line: Line | None = None  # its tenant's, if tenants take turns in reading
        self._connection = in_flight.join(self)
        call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._on_close)
        first.watch(self, self.fail)
        if guard.check is not None:
            caller = guard.caller(tuple(metadata), partial(peer_of, call), self.fail, self.peer)
            if caller is None:
                return
            self.caller = caller
            self._line = turns.line_of(caller.tenant)
        call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._on_read)

    def _on_read(self, event: Any) -> Any:
        message = event.batch_operations[0].message()
        self._first_message.unwatch(self)
        self.messages = 1
        if message is not None:  # perhaps it waits in a line; in any case it has been received
            self._held = len(message)
            self._connection.taken += self._held + FRAMING_BYTES
        line = self._line
        if line is None or line.is_full(self._held) or line.admits(self._arrived, message):
            self._arrived(message)
        return AGAIN

    def _arrived(self, message: bytes | None) -> None:
        try:
            if message is None:
                self.fail(grpc.StatusCode.UNIMPLEMENTED, "a unary call carries one message; none came")
            else:
                self._on_request(self, message)
        except Exception as error:  # a bug in a handler ends its call, not the serving thread
            _log.error("unary handler failed", exc_info=error)
            self.fail(grpc.StatusCode.INTERNAL, FAULT)

    def run_after_arrivals(self, callback: Callable[[], None], passes: int = PASSES) -> bool:
        """Call `callback` on grpcio's serving thread, after all messages that have arrived.

        grpcio takes waiting calls one by one: each needs two passes through the queue, of which the first begins
        the next call's. So this goes behind whatever comes while it waits, until a pass brings no call, or `passes`
        times.
        """
        begun = ARRIVALS.calls
        if passes == PASSES:
            expect()

        def again() -> None:
            if ARRIVALS.calls == begun or not passes or not self.run_after_arrivals(callback, passes - 1):
                callback()

        return call_soon(self._call, again)

    def metadata(self) -> Metadata:
        """The metadata that the client sent."""
        return tuple((key, value) for key, value in self._metadata)

    @property
    def half_open(self) -> bool:
        """True if its request may be in flight."""
        return not self.messages

    @property
    def sent(self) -> int:
        """Responses sent; the call ends with its only one."""
        return 0

    def held(self) -> tuple[int, int]:
        """Bytes of its request or, once it is answered, of its unsent response."""
        return (0, self._held) if self._answered else (self._held, 0)

    def read_again(self) -> None:
        """Nothing to do: it reads once."""

    def cut(self, code: grpc.StatusCode, details: str, trailing: Trailing, reason: str) -> None:
        """End the call now."""
        self._status = code.value[0], details
        self.fail(code, details, trailing)

    def drop(self) -> None:
        """End the call, after `cut`, even if its client reads no response."""
        self._call.cancel(*self._status)

    def answer(self, data: bytes) -> None:
        """Send headers, response and status in one batch of operations."""
        if not self._first():
            return
        self._held, self._answered = len(data), True
        operations = (
            cygrpc.SendInitialMetadataOperation((), 0),
            cygrpc.SendMessageOperation(data, 0),
            cygrpc.SendStatusFromServerOperation((), cygrpc.StatusCode.ok, b"", 0),
        )
        self._call.start_server_batch(operations, self._on_status)

    def fail(self, code: grpc.StatusCode, details: str, trailing: Trailing = ()) -> None:
        """End the call with an error."""
        if self._first():
            operations = status_operations(code, details, trailing, begun=False)
            self._call.start_server_batch(operations, self._on_status)

    # Both tags come on the serving thread; the later one ends the call.

    def _on_close(self, event: Any) -> Any:
        self._closed = True
        return self._finished() if self._gone() or self._sent else AGAIN

    def _on_status(self, event: Any) -> Any:
        self._sent = True
        return self._finished() if self._closed else AGAIN

    def _finished(self) -> Any:
        self._first_message.unwatch(self)
        if self._line is not None:
            self._line.leave(self._arrived)
        self._connection.leave(self)
        return self, ()


def status_operations(
    code: grpc.StatusCode, details: str, trailing: Trailing, *, begun: bool
) -> tuple[Any, ...]:
    """What ends a call. `begun`: its headers have been sent."""
    if code is grpc.StatusCode.OK and begun:  # nearly every call
        return (cygrpc.SendStatusFromServerOperation((), 0, b"", 0),)
    status = cygrpc.SendStatusFromServerOperation(tuple(trailing), code.value[0], details.encode(), 0)
    return (status,) if begun else (cygrpc.SendInitialMetadataOperation((), 0), status)
