"""The fast lane's unary calls; see `fast_stream.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import structlog
from grpc import _server
from grpc._cython import cygrpc

from .answer_once import AnswerOnce
from .calls import FAULT, OnRequest, Trailing
from .completion_queue import AGAIN, ARRIVALS, call_soon, expect
from .fast_stream import PASSES, finish_call
from .first_messages import FirstMessages
from .in_flight import FRAMING_BYTES, InFlight

_log = structlog.get_logger(__name__)


class UnaryCall(AnswerOnce):
    """One unary call on the fast lane (a `calls.UnaryCall`): on the wire, a stream of one message each way."""

    __slots__ = (
        "_answered", "_call", "_connection", "_context", "_finish", "_first_message", "_held", "_on_request", "_status",
        "messages", "peer",
    )  # fmt: skip

    def __init__(
        self,
        context: Any,
        finish: Callable[[None], None],
        on_request: OnRequest,
        first: FirstMessages,
        in_flight: InFlight,
    ) -> None:
        super().__init__()
        ARRIVALS.calls += 1
        self.peer: str = context.peer()
        self._call = context._rpc_event.call
        self._context = context
        self._finish = finish
        self._on_request = on_request
        self._first_message = first
        self._held = self.messages = 0  # bytes of the request, then of the response; requests received
        self._answered = False  # True: `_held` are bytes of the response
        self._status = (0, "")
        self._connection = in_flight.join(self)
        if context.add_callback(self._gone):
            first.watch(self, self.fail)
            self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._on_read)

    def _on_read(self, event: Any) -> Any:
        message = event.batch_operations[0].message()
        self._first_message.unwatch(self)
        self.messages = 1
        try:
            if message is None:
                self.fail(grpc.StatusCode.UNIMPLEMENTED, "a unary call carries one message; none came")
            else:
                self._held = len(message)
                self._connection.taken += self._held + FRAMING_BYTES
                self._on_request(self, message)
        except Exception as error:  # a bug in a handler ends its call, not the serving thread
            _log.error("unary handler failed", exc_info=error)
            self.fail(grpc.StatusCode.INTERNAL, FAULT)
        return AGAIN

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

    def _gone(self) -> None:
        self._first_message.unwatch(self)
        self._connection.leave(self)
        super()._gone()

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
        state = self._context._state
        with state.condition:
            # grpcio's own bookkeeping of a call whose status is sent: see grpc._server._status.
            if state.client is _server._CANCELLED or state.statused:
                return
            state.initial_metadata_allowed = False
            operations = (
                cygrpc.SendInitialMetadataOperation((), 0),
                cygrpc.SendMessageOperation(data, 0),
                cygrpc.SendStatusFromServerOperation((), cygrpc.StatusCode.ok, b"", 0),
            )
            self._call.start_server_batch(operations, self._on_answered)
            state.statused = True
            state.due.add(self)

    def _on_answered(self, event: Any) -> Any:
        state = self._context._state
        with state.condition:
            return _server._possibly_finish_call(state, self)  # type: ignore[arg-type]

    def fail(self, code: grpc.StatusCode, details: str, trailing: Trailing = ()) -> None:
        """End the call with an error."""
        if self._first():
            finish_call(self._context, self._finish, code, details, trailing)
