"""The fast lane: calls driven by operations of our own on grpcio's completion queue.

grpcio's serving thread calls the tags of these operations, so a stream needs no thread and no event loop. This
module, `fast_unary.py`, `new_calls.py` and `completion_queue.py` are the only ones that touch grpcio's private surface;
what they rely on `tests/service/transport/test_lane_contract.py` checks, and `lane_choice.py` falls back to the public
API if that no longer works.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc

from .calls import FAULT, Metadata, OpenStream, StreamHandler, Trailing
from .completion_queue import AGAIN, ARRIVALS, call_soon, expect, no_longer_idle, once_idle, peer_of
from .fast_unary import PASSES, status_operations
from .first_messages import FirstMessages
from .guard import Guard
from .in_flight import FRAMING_BYTES, LARGE_BYTES, InFlight
from .read_pacing import OUTBOX_REPLIES, PAUSE_REPLIES, WAKE_REPLIES, ReadPacing
from .reading_turns import Line, ReadingTurns

_log = structlog.get_logger(__name__)

_KEEP = cygrpc.WriteFlag.buffer_hint


class StreamCall:
    """One stream on the fast lane (a `calls.Call`).

    For a client that waits for each answer, sending it and receiving the next message is one batch of operations;
    `read_pacing.py` tells such a client from one that pipelines.

    The headers go out with the first reply, or with the status. Of replies that follow one another the core may keep
    all but the last (gRPC's write flag `buffer_hint`), and write them at once.

    Operations are started under the call's lock, to keep their order. That freezes nothing: the core queues them, or
    writes to a socket that never blocks, and calls no tag inside. Handlers are called without the lock.
    """

    __slots__ = (
        "_begun", "_call", "_cancelled", "_closed", "_connection", "_first", "_handler", "_in_line", "_kept", "_line",
        "_lock", "_metadata", "_outbox", "_over", "_reading", "_sending", "_sending_bytes", "_status", "_status_due",
        "_waiting", "_wake", "again", "caller", "gone", "peer", "sent",
    )  # fmt: skip

    def __init__(
        self,
        call: Any,
        metadata: Metadata,
        open_: OpenStream,
        first: FirstMessages,
        in_flight: InFlight,
        guard: Guard,
        turns: ReadingTurns,
    ) -> None:
        """Begin `call`, the core's. On the serving thread."""
        self.peer: str = call.peer().decode(errors="replace")
        self.gone, self.again = "cancelled", False
        self.caller = guard.unchecked
        self._call, self._metadata, self._first = call, metadata, first
        self._lock = threading.Lock()
        self._outbox: deque[bytes] = deque()
        self._status: tuple[grpc.StatusCode, str, Trailing] | None = None
        self._sending = False  # a send is in flight
        self._sending_bytes = 0  # of that send and of those kept before it
        self._kept = 0  # bytes of replies that the core keeps until the next one
        self._waiting = False  # the send is in one batch with a receive, and ends only with that
        self._begun = False  # the headers have been sent
        self._over = False  # the status is in flight or the call has ended: nothing more is sent
        self._status_due = False  # the status is in flight
        self._closed = self._cancelled = False  # nothing more can be sent; by the client
        self.sent = 0  # replies sent
        self._wake: Callable[[], None] | None = None  # resumes the handler that waits for room
        self._reading = ReadPacing()
        self._handler: StreamHandler | None = None
        self._line: Line | None = None  # its tenant's, if tenants take turns in reading
        self._in_line = 0  # bytes of what waits there
        self._connection = in_flight.join(self)
        call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._on_close)
        if guard.check is not None:
            caller = guard.caller(self.metadata(), partial(peer_of, call), self.end, self.peer)
            if caller is None:
                return
            self.caller = caller
            self._line = turns.line_of(caller.tenant)
        try:
            self._handler = open_(self)
        except Exception as error:
            self._fault(error)
            return
        self.read_again()

    # Tags, called on grpcio's serving thread

    def _on_read(self, event: Any) -> Any:
        message = event.batch_operations[0].message()
        if self._line is None or self._has_turn(self._line, message):
            self._arrived(message)
        return AGAIN

    def _on_sent_and_read(self, event: Any) -> Any:
        # Count the read as in flight first, so that flushed replies do not start another.
        self._sent()
        message = event.batch_operations[-1].message()
        if self._line is None or self._has_turn(self._line, message):
            self._arrived(message)
        return AGAIN

    def _has_turn(self, line: Line, message: bytes | None) -> bool:
        """True if it may take what has come; if not, that waits in the server, which then counts it as received."""
        if line.admits(self._arrived, message):
            return True
        self._first.unwatch(self)
        self._in_line = 1 if message is None else len(message) + FRAMING_BYTES
        self._connection.taken += self._in_line
        return False

    def _on_sent(self, event: Any) -> Any:
        self._sent()
        return AGAIN

    def _sent(self) -> None:
        wake = None
        with self._lock:
            self.sent += 1
            if self._wake is not None and len(self._outbox) <= WAKE_REPLIES:
                wake, self._wake = self._wake, None
            if self._outbox:
                self._send(self._outbox.popleft())
            else:
                self._sending = False
                if self._status is not None and not self._over:
                    self._send_status()
        if wake is not None:
            wake()

    def _arrived(self, message: bytes | None) -> None:
        reading = self._reading
        if not reading.messages:
            self._first.unwatch(self)
        with self._lock:
            handler = None if self._over or self._status is not None else self._handler
            reading.reading = False
            counted, self._in_line = self._in_line, 0
            if message is None:
                reading.half_closed = True
            elif handler is not None:
                size = len(message)
                ahead = reading.arrived(size)
                if not counted:
                    self._connection.taken += size + FRAMING_BYTES
                ARRIVALS.messages += 1
        if handler is None:
            return
        room = False
        try:
            if message is None:
                handler.on_half_close()
                return
            room = handler.on_message(message)
        except Exception as error:
            self._fault(error)
            if message is None:
                return
        with self._lock:
            reading.delivering = False
            reading.paused = not room and not reading.resumed
            if self._outbox and not self._sending:
                self._send(self._outbox.popleft())
            if (ahead or reading.ahead or not reading.unanswered) and self._may_read():
                self._read()

    def _on_close(self, event: Any) -> Any:
        with self._lock:
            self._closed, self._cancelled = True, event.batch_operations[0].cancelled()
            if self._status_due or not (self._cancelled or self._over):
                return AGAIN
            self._over = True
        return self._finished()

    def _on_status(self, event: Any) -> Any:
        with self._lock:
            self._status_due = False
            if not self._closed:
                return AGAIN
        return self._finished()

    def _finished(self) -> Any:
        """Nothing of the call is outstanding: tell its handler, once, and the server."""
        no_longer_idle()
        if self._line is not None:
            self._line.leave(self._arrived)
        self._connection.leave(self)
        with self._lock:
            handler, self._handler = self._handler, None
            self._over = True
            self._wake = None
            self._outbox.clear()
        if not self._reading.messages:
            self._first.unwatch(self)
        if handler is not None:
            try:
                handler.on_end(self._cancelled)
            except Exception as error:
                _log.error("stream handler failed at its end", exc_info=error)
        return self, ()

    def metadata(self) -> Metadata:
        """The metadata that the client sent."""
        return tuple((key, value) for key, value in self._metadata)

    def hand_to(self, handler: StreamHandler) -> None:
        """Let another handler take the later messages and the end."""
        with self._lock:
            self._handler = handler

    # Called from any thread

    def reply(self, data: bytes, *, last: bool = True) -> None:
        """Send one message, in order."""
        with self._lock:
            if self._over or self._status is not None:
                return
            reading = self._reading
            if last:
                reading.answered()
            if self._sending or (reading.delivering and not reading.ahead):
                # In the second case it waits for `on_message` to return, to be sent in one batch with a read.
                self._outbox.append(data)
                if self._may_read():
                    self._read()
            else:
                self._send(data)

    def skip(self) -> None:
        """The current message gets no reply."""
        with self._lock:
            self._reading.answered()

    def read_on(self) -> None:
        """Allow reading the next message before the current one is fully answered."""
        with self._lock:
            self._reading.read_on()

    def has_room(self, wake: Callable[[], None]) -> bool:
        """True if a handler that replies unasked may continue; else `wake` is called once it may."""
        with self._lock:
            if len(self._outbox) < PAUSE_REPLIES or self._over or self._status is not None:
                return True
            self._wake = wake
            return False

    def resume(self) -> None:
        """Resume reading: the handler has room again."""
        with self._lock:
            self._reading.resumed = True
            if self._reading.paused:
                self._reading.paused = False
                if self._may_read():
                    self._read()

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """Call `callback` on grpcio's serving thread, after all messages that have arrived.

        What a pipelining client has sent is read message by message, each by a pass through the queue: this goes
        behind, until a pass brings no more. Where that client is alone, what it has sent meanwhile is read, too.
        """
        reading = self._reading
        expect()
        if not reading.looking:
            return call_soon(self._call, callback)
        return self._run_after_arrivals(callback, PASSES, -1, ARRIVALS.messages - reading.messages)

    def _run_after_arrivals(self, callback: Callable[[], None], passes: int, seen: int, others: int) -> bool:
        messages = self._reading.messages

        def again() -> None:
            if messages != seen:
                put_off = passes > 1 and self._run_after_arrivals(callback, passes - 1, messages, others)
            else:
                put_off = ARRIVALS.messages - self._reading.messages == others and once_idle(callback)
            if not put_off:
                callback()

        return call_soon(self._call, again)

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Trailing = ()
    ) -> None:
        """End the call after the replies already given."""
        with self._lock:
            if self._over or self._status is not None:
                return
            self._status = (code, details, trailing)
            # The core keeps the order: the status may follow a send that is in flight.
            if not (self._outbox or (self._sending and not self._waiting)):
                self._send_status()

    def cut(self, code: grpc.StatusCode, details: str, trailing: Trailing, reason: str) -> None:
        """End the call now, unsent replies dropped; `reason` is why its session has ended."""
        with self._lock:
            if self._over:
                return
            self.gone = reason
            self._outbox.clear()
            self._status = (code, details, trailing)
            self._send_status()

    def drop(self) -> None:
        """End the call, after `cut`, even if its client reads nothing: the status would wait behind a reply."""
        if self._status is not None:
            code, details, _ = self._status
            self._call.cancel(code.value[0], details)

    @property
    def half_open(self) -> bool:
        """True if a message may be in flight."""
        return self._reading.reading and not self._in_line

    @property
    def messages(self) -> int:
        """The number of messages received."""
        return self._reading.messages

    def held(self) -> tuple[int, int]:
        """Bytes of its unanswered messages, one that waits for its turn among them, and of its unsent replies."""
        with self._lock:
            # While it is sent, the core has a copy.
            sending = 2 * self._sending_bytes if self._sending and not self._waiting else 0
            return sum(self._reading.unanswered) + self._in_line, sum(map(len, self._outbox)) + sending

    def read_again(self) -> None:
        """Begin or resume reading: the connection is below its bound. A first message has its time from then on."""
        with self._lock:
            if self._handler is not None and self._may_read():
                if not self._reading.messages:
                    self._first.watch(self, self.end)
                self._read()

    def _fault(self, error: Exception) -> None:
        """A bug in a handler ends its call, not the serving thread."""
        _log.error("stream handler failed", exc_info=error)
        self.end(grpc.StatusCode.INTERNAL, FAULT)

    # With the lock held

    def _may_read(self) -> bool:
        reading = self._reading  # in one expression: it is asked twice a message
        return not (
            self._over
            or reading.reading
            or reading.delivering
            or reading.paused
            or reading.half_closed
            or self._status is not None
            or self._connection.stopped
            or len(self._outbox) >= OUTBOX_REPLIES
        )

    def _read(self) -> None:
        self._reading.reading = True
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._on_read)

    def _send(self, data: bytes) -> None:
        self._sending = True
        read = self._may_read()
        # One batch for both is cheapest, but reports the end of the send only with the next message. So use it if
        # nothing else is to be sent before that message and the reply is small.
        size = len(data)
        self._waiting = read and size < LARGE_BYTES and not self._reading.unanswered and not self._outbox
        # If another reply follows, the core may keep this one and write both at once. Not the headers: their operation
        # ends only when they are written, and the next reply would wait for that.
        kept = self._kept
        self._kept = kept + size if self._outbox and self._begun and kept + size < LARGE_BYTES else 0
        self._sending_bytes = kept + size
        send: tuple[Any, ...] = (cygrpc.SendMessageOperation(data, _KEEP if self._kept else 0),)
        if not self._begun:
            self._begun = True
            send = (cygrpc.SendInitialMetadataOperation((), 0), *send)
        if self._waiting:
            self._reading.reading = True
            self._call.start_server_batch((*send, cygrpc.ReceiveMessageOperation(0)), self._on_sent_and_read)
            return
        if read:
            self._read()
        self._call.start_server_batch(send, self._on_sent)

    def _send_status(self) -> None:
        assert self._status is not None
        self._over = self._status_due = True
        self._call.start_server_batch(status_operations(*self._status, begun=self._begun), self._on_status)
