"""The lane that keeps to grpcio's public API: two threads a stream, one reading, one writing.

It behaves as the fast lane does and takes several times the CPU; it serves where grpcio has changed below the
fast lane.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import structlog

from .calls import FAULT, Handler, Metadata, OnRequest, OpenStream, Options, StreamHandler, Trailing
from .in_flight import FRAMING_BYTES, InFlight
from .reading import OUTBOX_REPLIES, PAUSE_REPLIES, WAKE_REPLIES

_log = structlog.get_logger(__name__)

_CALLS = 16_384

Status = tuple[grpc.StatusCode, str, Trailing]


class StreamCall:
    """One stream (a `calls.Call`)."""

    def __init__(self, context: grpc.ServicerContext, in_flight: InFlight) -> None:
        self.peer: str = context.peer()
        self.gone = "cancelled"
        self.messages = 0  # that have come
        self._unanswered: deque[int] = deque()  # bytes of each message that is not answered
        self._sending_bytes = 0  # of the reply that is with grpcio
        self._context = context
        self._changed = threading.Condition()
        self._outbox: deque[bytes] = deque()
        self._status: Status | None = None
        self._paused = False
        self._resumed = False  # the handler found room before its `on_message` returned
        self._wake: Callable[[], None] | None = None  # goes on with what was paused for want of room
        self._finished = False  # the status was handed to grpcio
        self._over = False  # the call has gone
        self._handler: StreamHandler | None = None
        self._busy = False  # the reading thread may be inside the handler
        self._connection = in_flight.join(self)

    def metadata(self) -> Metadata:
        """What the client sent before its messages."""
        return tuple((key, value) for key, value in self._context.invocation_metadata())

    def run(self, requests: Iterator[bytes], open_: OpenStream) -> Iterator[bytes]:
        """Every reply, then the status; runs on the stream's thread of grpcio's pool."""
        if not self._context.add_callback(self._on_over):
            self._connection.leave(self)
            return
        try:
            self._handler = open_(self)
        except Exception as error:
            self._fault(error)
        else:
            self._busy = True
            threading.Thread(target=self._read, args=(requests,), name="stream-reader", daemon=True).start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outbox or self._status is not None or self._over)
                if self._over:
                    break
                if not self._outbox:
                    assert self._status is not None
                    # A cancelled call can look half-closed first; the public API tells no better than this.
                    self._finished = self._context.is_active()
                    _set_status(self._context, self._status)
                    return
                data = self._outbox.popleft()
                wake = None
                if self._wake is not None and len(self._outbox) <= WAKE_REPLIES:
                    wake, self._wake = self._wake, None
                self._changed.notify_all()
            if wake is not None:
                wake()
            self._sending_bytes = len(data)
            yield data
            self._sending_bytes = 0
        self._end_if_over()

    def _read(self, requests: Iterator[bytes]) -> None:
        """Hand every message to the handler; runs on the stream's reading thread."""
        handler = self._handler
        assert handler is not None
        try:
            for message in _until_gone(requests):
                with self._changed:
                    if self._over or self._status is not None:
                        break
                    self._resumed = False
                    self.messages += 1
                    self._unanswered.append(len(message))
                self._connection.take(len(message) + FRAMING_BYTES)
                room = handler.on_message(message)
                with self._changed:
                    self._paused = not room and not self._resumed
                    self._changed.wait_for(self._may_read)
            # A cancelled call's requests may end as a half-closed one's do.
            if self._context.is_active() and self._status is None:
                handler.on_half_close()
        except Exception as error:
            self._fault(error)
        with self._changed:
            self._busy = False
        self._end_if_over()

    def _may_read(self) -> bool:
        ended = self._over or self._status is not None
        room = not self._paused and len(self._outbox) < OUTBOX_REPLIES
        return ended or (room and not self._connection.stopped)

    def _on_over(self) -> None:
        self._connection.leave(self)
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._end_if_over()

    def _end_if_over(self) -> None:
        """Tell the handler once, after the last that it was called for."""
        with self._changed:
            if not self._over or self._busy:
                return
            handler, self._handler = self._handler, None
        if handler is not None:
            try:
                handler.on_end(not self._finished)
            except Exception as error:
                _log.error("stream handler failed at its end", exc_info=error)

    def _fault(self, error: Exception) -> None:
        _log.error("stream handler failed", exc_info=error)
        self.end(grpc.StatusCode.INTERNAL, FAULT)

    def reply(self, data: bytes, *, last: bool = True) -> None:
        """Send one message after those before it."""
        with self._changed:
            if last and self._unanswered:
                self._unanswered.popleft()
            if not self._over and self._status is None:
                self._outbox.append(data)
                self._changed.notify_all()

    def skip(self) -> None:
        """The message at hand gets no reply."""
        with self._changed:
            if self._unanswered:
                self._unanswered.popleft()

    def read_on(self) -> None:
        """The reading thread reads ahead of the replies anyhow."""

    def has_room(self, wake: Callable[[], None]) -> bool:
        """Whether a handler that replies unasked may go on; `wake` is called once it may."""
        with self._changed:
            if len(self._outbox) < PAUSE_REPLIES or self._over or self._status is not None:
                return True
            self._wake = wake
            return False

    def soon(self, callback: Callable[[], None]) -> bool:
        """Not here: each call's messages have a thread of their own."""
        return False

    def resume(self) -> None:
        """Read on: the handler has room again."""
        with self._changed:
            self._resumed = True
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

    @property
    def half_open(self) -> bool:
        """Whether a message may be on its way."""
        return not self._over

    def held_bytes(self) -> int:
        """Bytes of its messages that are not answered, and of its replies that are not sent."""
        with self._changed:
            return sum(self._unanswered) + sum(map(len, self._outbox)) + 2 * self._sending_bytes

    def read_again(self) -> None:
        """The connection may be read again."""
        with self._changed:
            self._changed.notify_all()

    def cut(self, code: grpc.StatusCode, details: str, trailing: Trailing, reason: str) -> None:
        """End the call now, unsent replies dropped; `reason` is why its session has ended."""
        self.gone = reason
        with self._changed:
            self._outbox.clear()
        self.end(code, details, trailing)

    def drop(self) -> None:
        """End it though its client reads nothing, after `cut`: the status would wait behind a reply."""
        self._context.cancel()


def _until_gone(requests: Iterator[bytes]) -> Iterator[bytes]:
    """The requests; grpcio ends those of a cancelled call with an error."""
    while True:
        try:
            request = next(requests)
        except (StopIteration, grpc.RpcError):
            return
        yield request


class UnaryCall:
    """One unary call (a `calls.UnaryCall`)."""

    half_open = False
    messages = 1

    def __init__(self, context: grpc.ServicerContext, in_flight: InFlight) -> None:
        self.peer: str = context.peer()
        self._held = 0
        self._connection = in_flight.join(self)
        self._context = context
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._cancelled = False
        self._data = b""
        self._status: Status | None = None
        self._callback: Callable[[], None] | None = None

    def run(self, on_request: OnRequest, data: bytes) -> bytes:
        """Answer the request; waits until it is answered."""
        self._held = len(data)
        self._connection.take(self._held + FRAMING_BYTES)
        if not self._context.add_callback(self._on_over):
            self._connection.leave(self)
            return b""
        try:
            on_request(self, data)
        except Exception as error:
            _log.error("unary handler failed", exc_info=error)
            self.fail(grpc.StatusCode.INTERNAL, FAULT)
        self._done.wait()
        if self._status is not None:
            _set_status(self._context, self._status)
        return self._data

    def held_bytes(self) -> int:
        """Bytes of its request or, once it is answered, of the response that is not sent."""
        return self._held

    def read_again(self) -> None:
        """It reads once."""

    def cut(self, code: grpc.StatusCode, details: str, trailing: Trailing, reason: str) -> None:
        """End the call now."""
        self.fail(code, details, trailing)

    def drop(self) -> None:
        """End it though its client reads no response, after `cut`."""
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

    def soon(self, callback: Callable[[], None]) -> bool:
        """Not here: each call's messages have a thread of their own."""
        return False

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have `callback` called if the call ends before it is answered."""
        with self._lock:
            if not self._done.is_set():
                self._callback = callback
            if not self._cancelled:
                return
        callback()


def _set_status(context: grpc.ServicerContext, status: Status) -> None:
    code, details, trailing = status
    context.set_code(code)
    context.set_details(details)
    context.set_trailing_metadata(tuple(trailing))


class ThreadedLane:
    """Makes handlers whose calls each have threads (a `calls.Lane`)."""

    name = "threaded"

    def __init__(self, in_flight: InFlight | None = None) -> None:
        self.in_flight = in_flight or InFlight()

    def server(self, options: Options = (), *, spin_s: float = 0.0) -> grpc.Server:
        """A server with a thread for every call at once; they are made as they are needed. It never spins."""
        return grpc.server(futures.ThreadPoolExecutor(_CALLS, thread_name_prefix="calls"), options=options)

    def when_read(self, server: grpc.Server, callback: Callable[[], None]) -> bool:
        """The public API does not tell."""
        return False

    def stream(self, open_: OpenStream) -> Handler:
        """A bidirectional method."""

        def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            return StreamCall(context, self.in_flight).run(requests, open_)

        return grpc.stream_stream_rpc_method_handler(behaviour)

    def unary(self, on_request: OnRequest) -> Handler:
        """A unary method."""

        def behaviour(data: bytes, context: grpc.ServicerContext) -> bytes:
            return UnaryCall(context, self.in_flight).run(on_request, data)

        return grpc.unary_unary_rpc_method_handler(behaviour)
