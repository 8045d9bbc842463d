"""Streams and calls on grpcio's core, which cost the sender a quarter of `grpc.aio`'s CPU per message.

A load generator that costs more than the server measures itself. Like `service/transport/fast_stream.py` this uses
grpcio's private interface, within the same bounds on its version.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from grpc._cython import cygrpc

_Tag = Callable[[Any], None]
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection each
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


class Connection:
    """One connection to `target`, and the thread that its events arrive on."""

    def __init__(self, target: str) -> None:
        self._channel = cygrpc.Channel(target.encode(), _OPTIONS, None)
        self._due: list[None] = []  # one an event that is to come; its methods are atomic
        self._closing = False
        self._thread: threading.Thread | None = None

    def call(self, method: bytes, *batches: tuple[tuple[Any, ...], _Tag]) -> Any:
        """Start a call with these batches of operations."""
        self._due += [None] * len(batches)
        call = self._channel.integrated_call(0, method, None, None, (), None, batches, None)
        if self._thread is None:
            self._thread = threading.Thread(target=self._spin, daemon=True)
            self._thread.start()
        return call

    def operate(self, call: Any, operations: tuple[Any, ...], tag: _Tag) -> None:
        """Start a batch of operations; nothing if the call has ended."""
        self._due.append(None)
        if not call.operate(operations, tag):
            self._due.pop()

    def _spin(self) -> None:
        # The core must not be asked for an event if none is to come, and closing waits until all have been taken.
        while self._due or not self._closing:
            if not self._due:
                time.sleep(0.001)
                continue
            event = self._channel.next_call_event()
            if event.completion_type != cygrpc.CompletionType.queue_timeout:
                event.tag(event)
                self._due.pop()

    def close(self) -> None:
        """Cancel what is left and close the connection."""
        self._closing = True
        self._channel.close(cygrpc.StatusCode.cancelled, "the benchmark is over")
        if self._thread is not None:
            self._thread.join(5)


class Run:
    """What the streams of one load share."""

    def __init__(self) -> None:
        self.going = True
        self.latencies_s: list[float] = []
        self.failures: list[str] = []


class Stream:
    """One session's stream: at most `outstanding` messages without an answer.

    Attributes:
        last: the last reply.
        sent, replies: messages so far.
        over: set at the end of the call.
    """

    # Whether a receive is always outstanding.
    reads_ahead = True

    def __init__(
        self,
        run: Run,
        connection: Connection,
        method: str,
        first: bytes,
        then: bytes,
        outstanding: int,
        metadata: tuple[tuple[str, str], ...] = (),
        counts: Callable[[bytes], bool] | None = None,
    ) -> None:
        """`metadata`: of the call; `counts`: False for a reply that belongs to no message; None: all do."""
        self._run = run
        self._metadata, self._counts = metadata, counts
        self._connection = connection
        self._then = then
        self._outstanding = outstanding
        self._lock = threading.Lock()
        self._began_s: deque[float] = deque((time.perf_counter(),))
        self._due: deque[float] = deque()
        self._sending = False
        self.last = b""
        self.sent, self.replies = 1, 0
        self.over = threading.Event()
        self._begin(method, first)

    def _begin(self, method: str, first: bytes) -> None:
        # What needs `_call` is started once it is there: events come on another thread.
        self._call: Any = self._connection.call(
            method.encode(),
            ((cygrpc.ReceiveInitialMetadataOperation(0),), ignore),
            ((cygrpc.ReceiveStatusOnClientOperation(0),), self._on_status),
        )
        opening = (
            cygrpc.SendInitialMetadataOperation(self._metadata, 0),
            cygrpc.SendMessageOperation(first, 0),
            cygrpc.ReceiveMessageOperation(0),
        )
        self._connection.operate(self._call, opening, self._on_first)

    def _on_first(self, event: Any) -> None:
        """The session is open; a subclass sends the next messages."""
        raise NotImplementedError

    def _on_status(self, event: Any) -> None:
        status = event.batch_operations[0]
        if status.code() != cygrpc.StatusCode.ok:
            self._run.failures.append(f"{status.code()}: {status.details()!r}")
        self.over.set()

    def _passed_over(self, message: bytes | None, tag: _Tag) -> bool:
        """True if the reply belongs to no message. Another one is then received with `tag`."""
        if self._counts is None or message is None or self._counts(message):
            return False
        self._connection.operate(self._call, (cygrpc.ReceiveMessageOperation(0),), tag)
        return True

    def _answered(self, message: bytes | None) -> bool:
        if (
            message is None or self.replies == self.sent
        ):  # the answer to `end`'s message is none of the load's
            return False
        now_s = time.perf_counter()
        self._run.latencies_s.append(now_s - self._began_s.popleft())
        self.last = message
        self.replies += 1
        return True

    def end(self, last: bytes | None = None) -> None:
        """Half-close after `last`, if given. Call once every message has its answer."""
        operations: tuple[Any, ...] = (cygrpc.SendCloseFromClientOperation(0),)
        if last is not None:
            operations = (cygrpc.SendMessageOperation(last, 0), *operations)
            if not self.reads_ahead:
                operations = (*operations, cygrpc.ReceiveMessageOperation(0))
                self._connection.operate(self._call, operations, self._on_rest)
                return
        self._connection.operate(self._call, operations, ignore)

    def _on_rest(self, event: Any) -> None:
        self._passed_over(event.batch_operations[-1].message(), self._on_rest)


class PingPong(Stream):
    """Waits for each answer: one batch of operations a message."""

    reads_ahead = False

    def _on_first(self, event: Any) -> None:
        message = event.batch_operations[-1].message()
        if self._passed_over(message, self._on_first):
            return
        if self._answered(message) and self._run.going:
            self.sent += 1
            self._began_s.append(time.perf_counter())
            self._connection.operate(
                self._call,
                (cygrpc.SendMessageOperation(self._next(), 0), cygrpc.ReceiveMessageOperation(0)),
                self._on_first,
            )

    def _next(self) -> bytes:
        """The message to send now; it is counted in `sent` already."""
        return self._then


class Pipelined(Stream):
    """Keeps `outstanding` messages on their way."""

    def _on_first(self, event: Any) -> None:
        if self._answered(event.batch_operations[-1].message()):
            self._connection.operate(self._call, (cygrpc.ReceiveMessageOperation(0),), self._on_reply)
            self._fill()

    def _on_reply(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        if not self._passed_over(message, self._on_reply) and self._answered(message):
            self._connection.operate(self._call, (cygrpc.ReceiveMessageOperation(0),), self._on_reply)
            if not self._sending:
                self._fill()

    def _on_sent(self, event: Any) -> None:
        self._sending = False
        self._fill()

    def _fill(self) -> None:
        if self._run.going and self.sent - self.replies < self._outstanding:
            self._sending = True
            self.sent += 1
            self._began_s.append(time.perf_counter())
            self._connection.operate(self._call, (cygrpc.SendMessageOperation(self._then, 0),), self._on_sent)


class Scheduled(Stream):
    """Sends on schedule without waiting for answers; latency counts from the scheduled time."""

    def _on_first(self, event: Any) -> None:
        if self._answered(event.batch_operations[-1].message()):
            self._connection.operate(self._call, (cygrpc.ReceiveMessageOperation(0),), self._on_reply)

    def _on_reply(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        if not self._passed_over(message, self._on_reply) and self._answered(message):
            self._connection.operate(self._call, (cygrpc.ReceiveMessageOperation(0),), self._on_reply)

    def send(self, intended_s: float) -> None:
        """Send a message now, or as soon as the one before it is out. From the scheduling thread."""
        with self._lock:
            if self._sending:
                self._due.append(intended_s)
            else:
                self._send(intended_s)

    def _send(self, intended_s: float) -> None:
        self._sending = True
        self.sent += 1
        self._began_s.append(intended_s)
        self._connection.operate(self._call, (cygrpc.SendMessageOperation(self._then, 0),), self._on_sent)

    def _on_sent(self, event: Any) -> None:
        with self._lock:
            self._sending = False
            if self._due:
                self._send(self._due.popleft())


class UnaryCaller:
    """Makes one call after another (a `Stream` as far as the load is concerned)."""

    def __init__(self, run: Run, connection: Connection, method: str, message: bytes) -> None:
        self._run = run
        self._connection = connection
        self._method = method.encode()
        self._message = message
        self.last = b""
        self.sent = self.replies = 0
        self.over = threading.Event()
        self._start()

    def _start(self) -> None:
        self.sent += 1
        self._began_s = time.perf_counter()
        operations = (
            cygrpc.SendInitialMetadataOperation((), 0),
            cygrpc.SendMessageOperation(self._next(), 0),
            cygrpc.SendCloseFromClientOperation(0),
            cygrpc.ReceiveInitialMetadataOperation(0),
            cygrpc.ReceiveMessageOperation(0),
            cygrpc.ReceiveStatusOnClientOperation(0),
        )
        self._connection.call(self._method, (operations, self._on_answer))

    def _next(self) -> bytes:
        """The message to send now; it is counted in `sent` already."""
        return self._message

    def _on_answer(self, event: Any) -> None:
        message, status = event.batch_operations[4].message(), event.batch_operations[5]
        if message is None or status.code() != cygrpc.StatusCode.ok:
            self._run.failures.append(f"{status.code()}: {status.details()!r}")
            self.over.set()
            return
        self._run.latencies_s.append(time.perf_counter() - self._began_s)
        self.last = message
        self.replies += 1
        if self._run.going:
            self._start()
        if not self._run.going:
            self.over.set()

    def end(self, last: bytes | None = None) -> None:
        """Nothing: its last call ends by itself."""


def ignore(event: Any) -> None:
    """The tag of operations whose end does not matter."""
