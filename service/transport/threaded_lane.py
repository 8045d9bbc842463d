"""The lane that uses only grpcio's public API: two threads per stream, one reads, one writes.

It behaves as the fast lane does and takes several times the CPU; it serves where grpcio has changed below the
fast lane.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import suppress

import grpc
import structlog

from streamcell.service.errors import as_status
from streamcell.service.threads import NoThread, started

from .calls import FAULT, Handler, Metadata, OnRequest, OpenStream, Options, StreamHandler, Trailing
from .first_messages import FirstMessages
from .guard import Guard
from .in_flight import FRAMING_BYTES, InFlight
from .read_pacing import OUTBOX_REPLIES, PAUSE_REPLIES, WAKE_REPLIES
from .threaded_unary import Status, UnaryCall, set_status, until_gone

_log = structlog.get_logger(__name__)

_CALLS = 16_384


class StreamCall:
    """One stream (a `calls.Call`)."""

    def __init__(
        self, context: grpc.ServicerContext, first: FirstMessages, in_flight: InFlight, guard: Guard
    ) -> None:
        self.peer: str = context.peer()
        self.caller = guard.unchecked
        self._guard = guard
        self.gone = "cancelled"
        self.again = False
        self.messages = self.sent = 0  # messages received, replies sent
        self._reading = False  # a message is awaited
        self._unanswered: deque[int] = deque()  # bytes of each unanswered message
        self._sending_bytes = 0  # of the reply that grpcio is sending
        self._context = context
        self._first = first
        self._changed = threading.Condition()
        self._outbox: deque[bytes] = deque()
        self._status: Status | None = None
        self._paused = False
        self._resumed = False  # the handler found room before its `on_message` returned
        self._wake: Callable[[], None] | None = None  # resumes the handler that waits for room
        self._finished = False  # the status was handed to grpcio
        self._over = False  # the call has ended
        self._handler: StreamHandler | None = None
        self._busy = False  # the reading thread may be inside the handler
        self._connection = in_flight.join(self)

    def metadata(self) -> Metadata:
        """The metadata that the client sent."""
        return tuple((key, value) for key, value in self._context.invocation_metadata())

    def run(self, requests: Iterator[bytes], open_: OpenStream) -> Iterator[bytes]:
        """Yield every reply, then set the status; runs on the stream's thread of grpcio's pool."""
        if not self._context.add_callback(self._on_over):
            self._connection.leave(self)
            return
        caller = self._guard.caller(self.metadata(), self._context.auth_context, self.end, self.peer)
        if caller is not None:
            self.caller = caller
            self._begin(requests, open_)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outbox or self._status is not None or self._over)
                if self._over:
                    break
                if not self._outbox:
                    assert self._status is not None
                    # A cancelled call can look half-closed first; the public API does not distinguish them.
                    self._finished = self._context.is_active()
                    set_status(self._context, self._status)
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
            self.sent += 1
        self._end_if_over()

    def _begin(self, requests: Iterator[bytes], open_: OpenStream) -> None:
        try:
            self._handler = open_(self)
        except Exception as error:
            self._fault(error)
        else:
            self._busy = True
            self._first.watch(self, self.end)
            try:
                started("stream-reader", self._read, requests)
            except NoThread as error:
                self._busy = False
                self._first.unwatch(self)
                self._first.on_error(error)
                self.end(*as_status(error))

    def _read(self, requests: Iterator[bytes]) -> None:
        """Give every message to the handler; runs on the stream's reading thread."""
        try:
            self._reading = True
            for message in until_gone(requests):
                self._reading = False
                self._first.unwatch(self)
                with self._changed:
                    if self._over or self._status is not None:
                        break
                    self._resumed = False
                    self.messages += 1
                    self._unanswered.append(len(message))
                self._connection.take(len(message) + FRAMING_BYTES)
                assert self._handler is not None
                room = self._handler.on_message(message)
                del message  # the next one may take long to arrive
                with self._changed:
                    self._paused = not room and not self._resumed
                    self._changed.wait_for(self._may_read)
                self._reading = True
            # A cancelled call's requests may end like a half-closed one's.
            if self._context.is_active() and self._status is None and self._handler is not None:
                self._handler.on_half_close()
        except Exception as error:
            self._fault(error)
        with self._changed:
            self._busy = self._reading = False
        self._first.unwatch(self)
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
        """Tell the handler once that the call is over, after its other calls."""
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

    def hand_to(self, handler: StreamHandler) -> None:
        """Let another handler take the later messages and the end."""
        self._handler = handler

    def reply(self, data: bytes, *, last: bool = True) -> None:
        """Send one message, in order."""
        with self._changed:
            if last and self._unanswered:
                self._unanswered.popleft()
            if not self._over and self._status is None:
                self._outbox.append(data)
                self._changed.notify_all()

    def skip(self) -> None:
        """The current message gets no reply."""
        with self._changed:
            if self._unanswered:
                self._unanswered.popleft()

    def read_on(self) -> None:
        """Nothing to do: the reading thread always reads ahead of the replies."""

    def has_room(self, wake: Callable[[], None]) -> bool:
        """True if a handler that replies unasked may continue; else `wake` is called once it may."""
        with self._changed:
            if len(self._outbox) < PAUSE_REPLIES or self._over or self._status is not None:
                return True
            self._wake = wake
            return False

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """False: each call's messages have their own thread."""
        return False

    def resume(self) -> None:
        """Resume reading: the handler has room again."""
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
        """True if a message may be in flight."""
        return self._reading and not self._over

    def held(self) -> tuple[int, int]:
        """Bytes of its unanswered messages and of its unsent replies."""
        with self._changed:
            return sum(self._unanswered), sum(map(len, self._outbox)) + 2 * self._sending_bytes

    def read_again(self) -> None:
        """Resume reading: the connection is below its bound again."""
        with self._changed:
            self._changed.notify_all()

    def cut(self, code: grpc.StatusCode, details: str, trailing: Trailing, reason: str) -> None:
        """End the call now, unsent replies dropped; `reason` is why its session has ended."""
        self.gone = reason
        with self._changed:
            self._outbox.clear()
        self.end(code, details, trailing)

    def drop(self) -> None:
        """End the call, after `cut`, even if its client reads nothing: the status would wait behind a reply."""
        self._context.cancel()


class Workers(futures.ThreadPoolExecutor):
    """Threads for calls, made when they are needed. If the machine has no more, calls wait for one.

    grpcio's serving thread submits the calls and would end with the error that there is no more thread.
    """

    def _adjust_thread_count(self) -> None:
        with suppress(RuntimeError):
            super()._adjust_thread_count()


class ThreadedLane:
    """Makes handlers whose calls have their own threads (a `calls.Lane`)."""

    name = "threaded"

    def __init__(self, in_flight: InFlight | None = None) -> None:
        self.first_messages = FirstMessages()
        self.guard = Guard()
        self.public_guard = Guard(optional=True)
        self.in_flight = in_flight or InFlight()

    def server(self, options: Options = (), *, spin_s: float = 0.0) -> grpc.Server:
        """A server with a thread for every call, made when it is needed. It never polls."""
        workers = Workers(_CALLS, thread_name_prefix="calls")
        try:
            from .completion_queue import server_on_queue
        except (
            ImportError,
            AttributeError,
            TypeError,
        ):  # this grpcio differs inside: its thread cannot be watched
            return grpc.server(workers, options=options)
        return server_on_queue(workers, options, spin_s=0.0)

    def beats(self, server: grpc.Server) -> int | None:
        """A number that changes while the server's thread fetches events; None if unknown."""
        try:
            from .completion_queue import beats
        except (ImportError, AttributeError, TypeError):
            return None
        return beats(server)

    def when_read(self, server: grpc.Server, callback: Callable[[], None]) -> bool:
        """False: the public API does not offer this."""
        return False

    def take_turns(
        self, size: Callable[[str], int], most_bytes: Callable[[str], int | None] = lambda tenant: None
    ) -> None:
        """Nothing to do: each call has its own thread, and no message waits for another call's to be read."""

    def stream(self, open_: OpenStream, *, public: bool = False) -> Handler:
        """A bidirectional method."""
        guard = self.public_guard if public else self.guard

        def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            return StreamCall(context, self.first_messages, self.in_flight, guard).run(requests, open_)

        return grpc.stream_stream_rpc_method_handler(behaviour)

    def unary(self, on_request: OnRequest, *, public: bool = False) -> Handler:
        """A unary method."""
        guard = self.public_guard if public else self.guard

        def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            return UnaryCall(context, self.first_messages, self.in_flight, guard).run(on_request, requests)

        return grpc.stream_stream_rpc_method_handler(behaviour)
