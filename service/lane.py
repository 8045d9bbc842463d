"""The fast lane: calls driven by operations of our own on grpcio's completion queue.

grpcio's serving thread calls the tags of these operations, so a stream needs no thread and no event loop. This
is the only module that touches grpcio's private surface; `tests/test_lane_contract.py` holds what it relies on,
and `lane_choice.py` falls back to the public API where that no longer works.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from grpc import _server
from grpc._cython import cygrpc

from .calls import OnRequest, OpenStream, StreamHandler, Trailing
from .reading import Reading

_log = structlog.get_logger(__name__)

_AGAIN: tuple[None, tuple[()]] = (None, ())  # what grpcio's serving loop expects of a tag that ends no call


class StreamCall:
    """One stream on the fast lane (a `calls.Call`).

    For a client that waits for each answer, sending it and receiving the next message is one batch of
    operations; `reading.py` tells such a client from one that pipelines.
    """

    __slots__ = (
        "_call", "_context", "_finish", "_handler", "_lock", "_outbox", "_over", "_reading", "_sending",
        "_status", "_waiting", "peer",
    )  # fmt: skip

    def __init__(self, context: Any, finish: Callable[[None], None], open_: OpenStream) -> None:
        self.peer: str = context.peer()
        self._call = context._rpc_event.call
        self._context = context
        self._finish = finish
        self._lock = threading.Lock()
        self._outbox: deque[bytes] = deque()
        self._status: tuple[grpc.StatusCode, str, Trailing] | None = None
        self._sending = False  # a send is in flight
        self._waiting = (
            False  # … in one batch with a receive, so that its end shows only with the next message
        )
        self._over = False  # the status is on its way or the call has gone: nothing more is sent
        self._reading = Reading()
        self._handler: StreamHandler | None = open_(self)
        if not context.add_callback(self._on_end):
            self._on_end()
            return
        context._state.initial_metadata_allowed = False
        self._reading.reading = True
        self._call.start_server_batch(
            (cygrpc.SendInitialMetadataOperation((), 0), cygrpc.ReceiveMessageOperation(0)),
            self._on_sent_first,
        )

    # Tags, called on grpcio's serving thread

    def _on_sent_first(self, event: Any) -> Any:
        self._arrived(event.batch_operations[1].message())
        return _AGAIN

    def _on_read(self, event: Any) -> Any:
        self._arrived(event.batch_operations[0].message())
        return _AGAIN

    def _on_sent_and_read(self, event: Any) -> Any:
        # The message first is in flight as to reading, so that what is flushed does not read as well.
        self._sent()
        self._arrived(event.batch_operations[1].message())
        return _AGAIN

    def _on_sent(self, event: Any) -> Any:
        self._sent()
        return _AGAIN

    def _arrived(self, message: bytes | None) -> None:
        with self._lock:
            reading, handler = self._reading, self._handler
            reading.reading = False
            if message is None:
                reading.half_closed = True
            else:
                ahead = reading.arrived()
        if handler is None:
            return
        try:
            if message is None:
                handler.on_half_close()
                return
            room = handler.on_message(message)
        except Exception as error:  # a bug in a handler ends its call, not the serving thread
            _log.error("stream handler failed", exc_info=error)
            self.end(grpc.StatusCode.INTERNAL, "internal error")
            return
        with self._lock:
            if not room and not reading.resumed:
                reading.paused = True
            elif (ahead or not reading.unanswered) and self._may_read():
                self._read()

    def _on_end(self) -> None:
        """grpcio's termination callback: once, when nothing of the call is outstanding."""
        with self._lock:
            handler, self._handler = self._handler, None
            self._over = True
            self._outbox.clear()
        if handler is not None:
            try:
                handler.on_end(self._context._state.client is _server._CANCELLED)
            except Exception as error:
                _log.error("stream handler failed at its end", exc_info=error)

    # Called from any thread

    def reply(self, data: bytes) -> None:
        """Send one message after those before it."""
        with self._lock:
            if self._over or self._status is not None:
                return
            self._reading.answered()
            if self._sending:
                self._outbox.append(data)
                if self._may_read():
                    self._read()
            else:
                self._send(data)

    def resume(self) -> None:
        """Read on: the handler has room again."""
        with self._lock:
            self._reading.resumed = True
            if self._reading.paused:
                self._reading.paused = False
                if self._may_read():
                    self._read()

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Trailing = ()
    ) -> None:
        """End the call after the replies already given."""
        with self._lock:
            if self._over or self._status is not None:
                return
            self._status = (code, details, trailing)
            # The core keeps the order of what is sent, so the status may follow a send that is in flight.
            if self._sending and not self._waiting:
                return
            self._over = True
        self._send_status()

    # With the lock held

    def _may_read(self) -> bool:
        return not self._over and self._status is None and self._reading.may_read(len(self._outbox))

    def _read(self) -> None:
        self._reading.reading = True
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._on_read)

    def _send(self, data: bytes) -> None:
        self._sending = True
        read = self._may_read()
        # One batch for both is cheapest, and shows the end of the send only with the next message: it is right
        # where nothing is left to be sent before that message.
        self._waiting = read and not self._reading.unanswered and not self._outbox
        if self._waiting:
            self._reading.reading = True
            self._call.start_server_batch(
                (cygrpc.SendMessageOperation(data, 0), cygrpc.ReceiveMessageOperation(0)),
                self._on_sent_and_read,
            )
            return
        if read:
            self._read()
        self._call.start_server_batch((cygrpc.SendMessageOperation(data, 0),), self._on_sent)

    # Without

    def _sent(self) -> None:
        with self._lock:
            if self._outbox:
                self._send(self._outbox.popleft())
                return
            self._sending = False
            if self._status is None or self._over:
                return
            self._over = True
        self._send_status()

    def _send_status(self) -> None:
        assert self._status is not None
        code, details, trailing = self._status
        _finish(self._context, self._finish, code, details, trailing)


class UnaryCall:
    """One unary call on the fast lane (a `calls.UnaryCall`): on the wire, a stream of one message each way."""

    __slots__ = ("_call", "_callback", "_context", "_done", "_finish", "_lock", "_on_request", "peer")

    def __init__(self, context: Any, finish: Callable[[None], None], on_request: OnRequest) -> None:
        self.peer: str = context.peer()
        self._call = context._rpc_event.call
        self._context = context
        self._finish = finish
        self._on_request = on_request
        self._lock = threading.Lock()
        self._done = False
        self._callback: Callable[[], None] | None = None
        if context.add_callback(self._on_end):
            self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._on_read)

    def _on_read(self, event: Any) -> Any:
        message = event.batch_operations[0].message()
        try:
            if message is None:
                self.fail(grpc.StatusCode.INTERNAL, "a unary call carries one message; none came")
            else:
                self._on_request(self, message)
        except Exception as error:  # a bug in a handler ends its call, not the serving thread
            _log.error("unary handler failed", exc_info=error)
            self.fail(grpc.StatusCode.INTERNAL, "internal error")
        return _AGAIN

    def _on_end(self) -> None:
        with self._lock:
            answered, self._done = self._done, True
            callback, self._callback = self._callback, None
        if callback is not None and not answered:
            callback()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have `callback` called if the call ends before it is answered."""
        with self._lock:
            if not self._done:
                self._callback = callback
                return
        callback()

    def answer(self, data: bytes) -> None:
        """Send headers, response and status in one batch of operations."""
        if not self._first():
            return
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
            _finish(self._context, self._finish, code, details, trailing)

    def _first(self) -> bool:
        with self._lock:
            done, self._done = self._done, True
            self._callback = None
        return not done


def _finish(
    context: Any, finish: Callable[[None], None], code: grpc.StatusCode, details: str, trailing: Trailing
) -> None:
    """End a call through grpcio, which knows what to do where it has gone meanwhile."""
    context.set_code(code)
    context.set_details(details)
    context.set_trailing_metadata(tuple(trailing))
    finish(None)
