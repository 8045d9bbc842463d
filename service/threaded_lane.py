"""The lane that keeps to grpcio's public API: two threads a stream, one reading, one writing.

It behaves as the fast lane does and takes several times the CPU; it serves where grpcio has changed below the
fast lane.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

import grpc
import structlog

from .calls import Handler, OnRequest, OpenStream, Trailing

_log = structlog.get_logger(__name__)

_OUTBOX_REPLIES = 32  # unsent replies above which a call is not read


class StreamCall:
    """One stream (a `calls.Call`)."""

    def __init__(self, context: grpc.ServicerContext, open_: OpenStream) -> None:
        self.peer: str = context.peer()
        self._context = context
        self._changed = threading.Condition()
        self._outbox: deque[bytes] = deque()
        self._status: tuple[grpc.StatusCode, str, Trailing] | None = None
        self._paused = False
        self._room = False  # `resume` came before `on_message` returned
        self._finished = False  # the status was handed to grpcio
        self._over = False  # the call has gone
        self._handler = open_(self)
        if not context.add_callback(self._on_end):
            self._on_end()

    def read(self, requests: Iterator[bytes]) -> None:
        """Hand every message to the handler; runs on the stream's reading thread."""
        try:
            for message in requests:
                with self._changed:
                    self._room = False
                room = self._handler.on_message(message)
                with self._changed:
                    self._paused = not room and not self._room
                    self._changed.wait_for(
                        lambda: self._over or (not self._paused and len(self._outbox) < _OUTBOX_REPLIES)
                    )
                    if self._over:
                        return
            self._handler.on_half_close()
        except Exception as error:
            # grpcio ends the iteration of a cancelled call with an error; any other is a handler's bug.
            if self._context.is_active():
                _log.error("stream handler failed", exc_info=error)
                self.end(grpc.StatusCode.INTERNAL, "internal error")

    def write(self) -> Iterator[bytes]:
        """Every reply, then the status; runs on the stream's thread of grpcio's pool."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outbox or self._status is not None or self._over)
                if self._over:
                    return
                if self._outbox:
                    data = self._outbox.popleft()
                    self._changed.notify_all()
                else:
                    break
            yield data
        assert self._status is not None
        # A cancelled call can look half-closed first; the public API tells no better than this.
        self._finished = self._context.is_active()
        _set_status(self._context, *self._status)

    def _on_end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        try:
            self._handler.on_end(not self._finished)
        except Exception as error:
            _log.error("stream handler failed at its end", exc_info=error)

    def reply(self, data: bytes) -> None:
        """Send one message after those before it."""
        with self._changed:
            if not self._over and self._status is None:
                self._outbox.append(data)
                self._changed.notify_all()

    def resume(self) -> None:
        """Read on: the handler has room again."""
        with self._changed:
            self._room = True
            self._paused = False
            self._changed.notify_all()

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Trailing = ()
    ) -> None:
        """End the call after the replies already given."""
        with self._changed:
            if self._status is None:
                self._status = (code, details, trailing)
                self._changed.notify_all()


class UnaryCall:
    """One unary call (a `calls.UnaryCall`)."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.peer: str = context.peer()
        self._context = context
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._data: bytes | None = None
        self._status: tuple[grpc.StatusCode, str, Trailing] | None = None
        self._callback: Callable[[], None] | None = None

    def run(self, on_request: OnRequest, data: bytes) -> bytes:
        """Answer the request; waits until it is answered."""
        if not self._context.add_callback(self._on_end):
            return b""
        try:
            on_request(self, data)
        except Exception as error:
            _log.error("unary handler failed", exc_info=error)
            self.fail(grpc.StatusCode.INTERNAL, "internal error")
        self._done.wait()
        if self._status is not None:
            _set_status(self._context, *self._status)
        return self._data or b""

    def _on_end(self) -> None:
        if (callback := self._first()) is not None:
            callback()

    def answer(self, data: bytes) -> None:
        """Send the response with status OK."""
        self._first(data=data)

    def fail(self, code: grpc.StatusCode, details: str, trailing: Trailing = ()) -> None:
        """End the call with an error."""
        self._first(status=(code, details, trailing))

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have `callback` called if the call ends before it is answered."""
        with self._lock:
            if not self._done.is_set():
                self._callback = callback
                return
        callback()

    def _first(
        self, data: bytes | None = None, status: tuple[grpc.StatusCode, str, Trailing] | None = None
    ) -> Callable[[], None] | None:
        """Keep the first end of the call; the callback that was waiting for another."""
        with self._lock:
            if self._done.is_set():
                return None
            self._data, self._status = data, status
            callback, self._callback = self._callback, None
            self._done.set()
            return callback


def _set_status(
    context: grpc.ServicerContext, code: grpc.StatusCode, details: str, trailing: Trailing
) -> None:
    context.set_code(code)
    context.set_details(details)
    context.set_trailing_metadata(tuple(trailing))


class ThreadedLane:
    """Makes handlers whose calls each have threads (a `calls.Lane`)."""

    name = "threaded"
    # grpcio's pool must hold a thread for every call at once; threads are made as they are needed.
    workers = 16_384

    def stream(self, open_: OpenStream) -> Handler:
        """A bidirectional method."""

        def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            call = StreamCall(context, open_)
            reader = threading.Thread(target=call.read, args=(requests,), name="stream-reader", daemon=True)
            reader.start()
            yield from call.write()

        return grpc.stream_stream_rpc_method_handler(behaviour)

    def unary(self, on_request: OnRequest) -> Handler:
        """A unary method."""

        def behaviour(data: bytes, context: grpc.ServicerContext) -> bytes:
            return UnaryCall(context).run(on_request, data)

        return grpc.unary_unary_rpc_method_handler(behaviour)
