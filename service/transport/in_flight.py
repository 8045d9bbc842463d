"""What clients have in this process's memory: half-received messages, queued work, unread replies; and its bounds.

Calls note what they hold as they go (`held_bytes`). What the core holds of messages that are half received nobody says,
but the kernel tells how many bytes a connection has brought, and its calls how many of them they were given: the
difference is in the core. A thread sums both up, off the path of a message. Bytes of calls that have ended before they
were given them are in that difference and no longer in memory, so it may be no more than the live calls can hold, nor
than the process has grown.

Over its bound a connection is no longer read: HTTP/2's flow control holds its client back until enough is answered.
That is all that happens to a client that sends far ahead, however long the server takes. Calls end with
MEMORY_IN_FLIGHT only if it is the client that the server waits for: it reads no replies, or sends no whole messages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container
from typing import NamedTuple, Protocol

import grpc
import structlog

from streamcell.service.errors import MemoryInFlight, ServiceError, as_status

from .tcp_figures import TcpFigures, memory_bytes, trim_memory

_log = structlog.get_logger(__name__)

FRAMING_BYTES = 64  # a message costs on the wire at most, beside itself: frames, windows, pings
LARGE_BYTES = 8192  # of a reply from so many bytes on it is followed until it has gone
_CALL_BYTES = 2048  # of a call's headers
_FLOOR_BYTES = 64 * 1024  # of a connection's that are nothing half received: its beginning, TLS's too
# What the core takes of a stream ahead of its being read: more is faster for large messages, less keeps the windows of
# as many streams within a connection's bound.
_LEAST_WINDOW_BYTES, _MOST_WINDOW_BYTES, _WINDOWS = 64 * 1024, 1024 * 1024, 2048
_LOOK_S = 0.1
_FULL_LOOK_S = 1.0  # between two looks at every connection, while nothing is the matter
_COST = 50  # a look may take a fiftieth of the time
_URGENT_COST = 4  # … or a quarter, if much is in memory
_PATIENCE_LOOKS = 50  # that a client may take, over its bound, to read one reply or to complete one message
_READING_BYTES = 4096  # sent since the last look: more than pings, so the client reads replies
_REASON = MemoryInFlight.reason.lower()


def window_bytes(connection_bytes: int) -> int:
    """What a stream may send ahead of its being read, if its connection may have so many bytes in memory."""
    return min(_MOST_WINDOW_BYTES, max(_LEAST_WINDOW_BYTES, connection_bytes // _WINDOWS))


class Held(Protocol):
    """A call, as this module knows it."""

    peer: str

    @property
    def half_open(self) -> bool:
        """Whether a message may be on its way."""

    @property
    def messages(self) -> int:
        """How many have come."""

    @property
    def sent(self) -> int:
        """Replies that have gone."""

    def held(self) -> tuple[int, int]:
        """Bytes of its messages that are not answered, and of its replies that are not sent."""

    def read_again(self) -> None:
        """The connection may be read again."""

    def cut(
        self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str | bytes], ...], reason: str
    ) -> None:
        """End the call, with a status that its client gets if it reads."""

    def drop(self) -> None:
        """End it whatever its client does, after `cut`."""


class Seen(NamedTuple):
    """How far a call was at the last look."""

    messages: int
    sent: int
    held_bytes: int
    looks: int  # in a row at which replies were unsent, and none had gone since the one before


class Limits(NamedTuple):
    """What may be in the core at most."""

    window_bytes: int  # of a call that is not being read
    ahead_bytes: int  # of all such calls of a connection
    message_bytes: int  # of one message
    process_bytes: int | None  # of everything: by how much the process has grown; None if that is not known


class Connection:
    """One client's connection and its live calls."""

    __slots__ = (
        "_acked_before", "_lock", "_received_before", "_relieved", "_room_before", "_taken_before", "calls", "cut",
        "half_bytes", "held_bytes", "looks_stuck", "peer", "seen", "stopped", "stuck_bytes", "taken",
    )  # fmt: skip

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.calls: set[Held] = set()
        self.cut: set[Held] = set()  # that have been told to end, and should be gone at the next look
        self.taken = 0  # bytes that its calls were given, with what their framing may have cost
        self.stopped = False  # its calls are not read
        self.held_bytes = 0
        self.half_bytes = 0  # received and not with a call, at the last look
        self.stuck_bytes = 0  # of these, of messages that are half received
        self.looks_stuck = 0  # in a row at which no message had become whole since the one before
        self.seen: dict[Held, Seen] = {}
        self._taken_before = self._received_before = self._acked_before = 0
        self._room_before = 0
        self._relieved = False
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Add to `taken`, where several threads do."""
        with self._lock:
            self.taken += size

    def leave(self, call: Held) -> None:
        """A call is over. It knows its connection, so it is forgotten here: a cycle would wait for the collector."""
        self.calls.discard(call)
        self.seen.pop(call, None)
        self.cut.discard(call)

    @property
    def bytes(self) -> int:
        """What it has in memory."""
        return self.held_bytes + self.half_bytes

    def look(self, figures: tuple[int, int] | None, limits: Limits, *, patient: bool) -> None:
        """Sum up its calls.

        Args:
            figures: what TCP has received of it and what its client has acknowledged, None if that is not known.
            limits: what may be in the core.
            patient: as long as the client reads anything at all, none of its calls counts as unread.
        """
        calls = list(self.calls)
        for call in self.cut & self.calls:
            call.drop()
        self.cut.clear()
        taken, self._taken_before = self.taken - self._taken_before, self.taken
        reads = figures is not None and figures[1] - self._acked_before > _READING_BYTES and patient
        if figures is not None:
            half_open = sum(call.half_open for call in calls)
            windows = limits.window_bytes * (len(calls) - half_open)
            self._count_half(calls, *figures, taken)
            # Calls that had not begun at this look have by the next.
            room = windows + (limits.window_bytes + limits.message_bytes) * half_open
            self.half_bytes = min(self.half_bytes, max(room, self._room_before))
            if limits.process_bytes is not None:
                self.half_bytes = min(self.half_bytes, limits.process_bytes)
            self._room_before = room
            # A call that is not being read may have its window full, and that is as it should be.
            ahead = min(limits.ahead_bytes, windows)
            self.stuck_bytes = max(0, self.half_bytes - ahead)
        self.looks_stuck = 0 if taken else self.looks_stuck + 1
        seen = {}
        for call in calls:
            unanswered, unsent = call.held()
            before, sent = self.seen.get(call), call.sent
            unread = before is not None and before.sent == sent and unsent and not reads
            looks = before.looks + 1 if before is not None and unread else 0
            seen[call] = Seen(call.messages, sent, unanswered + unsent, looks)
        self.seen = {call: each for call, each in seen.items() if call in self.calls}
        self.held_bytes = sum(each.held_bytes for each in seen.values())

    def _count_half(self, calls: list[Held], received: int, acked: int, taken: int) -> None:
        if received < self._received_before:  # another connection from the same port
            self._received_before = self._acked_before = self.half_bytes = taken = 0
        allowed = 0 if self._received_before else _FLOOR_BYTES
        # Windows are opened as replies are read, and headers are no messages.
        allowed += (acked - self._acked_before) // 64 + _CALL_BYTES * sum(
            call not in self.seen for call in calls
        )
        came = received - self._received_before - taken - taken // 64 - allowed
        self.half_bytes = max(0, self.half_bytes + came) if calls and not self._relieved else 0
        self._relieved = False
        self._received_before, self._acked_before = received, acked

    def stop(self) -> None:
        """Read it no more."""
        self.stopped = True

    def go_on(self) -> None:
        """Read it again."""
        self.stopped = False
        for call in list(self.calls):
            call.read_again()

    def half_received(self, before: dict[Held, Seen]) -> set[Held]:
        """The calls whose messages are not whole, by all that can be told; `before`: the look before the last."""
        half = [call for call in self.calls if call.half_open]
        # First those that never had a whole message, then those that had none since then.
        return (
            {call for call in half if not call.messages}
            or {call for call in half if call in before and before[call].messages == call.messages}
            or set(half or self.calls)
        )

    def unread(self, bound: int) -> set[Held]:
        """Calls whose replies are not read, so many that it is under `bound` without them; none for a trifle."""
        stalled = {
            call: each.held_bytes for call, each in list(self.seen.items()) if each.looks >= _PATIENCE_LOOKS
        }
        if sum(stalled.values()) <= bound // 4:
            return set()
        found, total = set(), self.held_bytes
        for call in sorted(stalled, key=lambda each: -stalled[each]):
            if total <= 3 * bound // 4:
                break
            found.add(call)
            total -= stalled[call]
        return found

    def end(self, calls: set[Held], error: ServiceError, *, half: bool) -> None:
        """End calls, `half`: for what is half received."""
        if half:  # what was on its way to them still comes, and is dropped
            self.half_bytes = self.stuck_bytes = 0
            self._relieved = True
        status = as_status(error)
        for call in calls:
            call.cut(*status, _REASON)
        self.cut = calls


class InFlight:
    """The connections of a lane's servers."""

    def __init__(
        self,
        figures: Callable[[Container[str]], dict[str, tuple[int, int]]] | None = None,
        memory: Callable[[], int] = memory_bytes,
    ) -> None:
        """`figures`: as `TcpFigures.of`; `memory`: bytes that the process has, 0 if that is not known."""
        self._connections: dict[str, Connection] = {}
        self._figures = figures or TcpFigures().of
        self._memory = memory
        self._least_memory = 0  # that the process had at any look
        self._server_bytes = self._connection_bytes = self._message_bytes = 0
        self._on_error: Callable[[ServiceError], None] = lambda error: None
        self._stopping = threading.Event()
        self._again = False  # look again soon: calls have been told to end
        self.bytes = 0  # in memory, at the last look
        self.held_back = 0  # connections that are not read

    def join(self, call: Held) -> Connection:
        """A call begins; its connection."""
        connection = self._connections.get(call.peer)
        if connection is None:
            connection = self._connections.setdefault(call.peer, Connection(call.peer))
        connection.calls.add(call)
        return connection

    def watch(self) -> None:
        """Keep the bounds from now on, on a thread."""
        threading.Thread(target=self._watch, name="memory-in-flight", daemon=True).start()

    def bound(
        self,
        server_bytes: int,
        connection_bytes: int,
        message_bytes: int,
        on_error: Callable[[ServiceError], None],
    ) -> None:
        """Set what `look` holds the connections to.

        Args:
            server_bytes: what all of them may have in memory.
            connection_bytes: what one of them may.
            message_bytes: the largest message that the core takes.
            on_error: told of each call that ends for it.
        """
        self._server_bytes, self._connection_bytes = server_bytes, min(connection_bytes, server_bytes)
        self._message_bytes = message_bytes
        self._on_error = on_error

    def figures(self) -> tuple[int, int]:
        """Bytes in memory and connections that are not read, at the last look."""
        return self.bytes, self.held_back

    def stop(self) -> None:
        """Keep them no more."""
        self._stopping.set()

    def _watch(self) -> None:
        last_s, took_s, memory = 0.0, 0.0, 0
        while not self._stopping.wait(_LOOK_S):
            now_s, now = time.monotonic(), self._memory()
            grown = now - memory > self._connection_bytes // 8
            pressed = self.held_back or self._again or self.bytes > self._connection_bytes // 2
            urgent = grown or pressed
            pause_s = _URGENT_COST * took_s if urgent else max(_FULL_LOOK_S, _COST * took_s)
            if now_s - last_s < pause_s:
                continue
            self._again = False
            try:
                self.look()
            except Exception as error:  # a bug must not end the watch
                _log.error("memory in flight could not be summed up", exc_info=error)
            last_s, memory = time.monotonic(), now
            took_s = last_s - now_s

    def look(self) -> None:
        """Sum up every connection, and do what is to be done about those over their bounds."""
        figures, memory = self._figures(self._connections), self._memory()
        self._least_memory = min(self._least_memory or memory, memory)
        crowded = self.bytes > 3 * self._server_bytes // 2
        limits = Limits(
            window_bytes(self._connection_bytes),
            max(self._connection_bytes, _WINDOWS * _LEAST_WINDOW_BYTES),
            self._message_bytes,
            memory - self._least_memory if memory else None,
        )
        before = {}
        for peer, connection in list(self._connections.items()):
            if not connection.calls and peer not in figures:
                del self._connections[peer]  # it has gone; a call that begins just now makes another
                connection.seen = {}
                continue
            before[peer] = connection.seen
            patient = not crowded and connection.bytes <= 2 * self._connection_bytes
            connection.look(figures.get(peer), limits, patient=patient)
        self.bytes = rest = sum(each.bytes for each in self._connections.values())
        for connection in sorted(self._connections.values(), key=lambda each: -each.bytes):
            if connection.bytes > self._connection_bytes or rest > self._server_bytes:
                rest -= connection.bytes
            elif not connection.stopped:
                continue
            elif connection.bytes < 3 * self._connection_bytes // 4:
                connection.go_on()
                continue
            # It is over its bound, or was and has not come down: its client may be what the server waits for.
            if connection.held_bytes > self._bound(connection) // 2:
                connection.stop()
            elif connection.stopped:  # what is left is in the core, and goes only if it is read
                connection.go_on()
            self._end_offenders(connection, before.get(connection.peer, {}))
        self.held_back = sum(each.stopped for each in self._connections.values())

    def _bound(self, connection: Connection) -> int:
        """What a connection that is over a bound may have; where it is over the server's, no more than it has."""
        return min(self._connection_bytes, connection.bytes)

    def _correct(self, connection: Connection) -> None:
        """Hold the estimate to what the process has once it has given back what is free."""
        trim_memory()
        memory = self._memory()
        excess = connection.half_bytes - max(0, memory - self._least_memory)
        if memory and excess > 0:
            connection.half_bytes -= excess
            connection.stuck_bytes = max(0, connection.stuck_bytes - excess)

    def _waits_for_the_rest(self, connection: Connection) -> bool:
        """Whether it is half-received messages that take a connection over its bound, and no more of them comes."""
        stuck = connection.stuck_bytes
        # Of half-received messages memory grows though nothing is read: soon, if it is much.
        much = stuck > self._connection_bytes or self.bytes > 3 * self._server_bytes // 2
        return stuck > self._bound(connection) // 2 and (much or connection.looks_stuck >= _PATIENCE_LOOKS)

    def _end_offenders(self, connection: Connection, before: dict[Held, Seen]) -> None:
        """End those calls of a connection over its bound for which the server can only wait."""
        half = self._waits_for_the_rest(connection)
        if half:
            self._correct(connection)
            if not self._waits_for_the_rest(connection):
                return
        bound = self._bound(connection)
        ended = connection.half_received(before) if half else connection.unread(bound)
        if not ended:
            return
        error = MemoryInFlight(
            f"this connection has {connection.bytes} bytes in the server's memory, of messages half received, messages "
            f"unanswered and replies unread, where it may have {self._connection_bytes} and all together "
            f"{self._server_bytes}: read replies, send less ahead, or raise --max-connection-bytes",
            bytes=connection.bytes, max_connection_bytes=self._connection_bytes, max_bytes=self._server_bytes,
        )  # fmt: skip
        _log.warning(
            "calls ended for memory in flight",
            peer=connection.peer, bytes=connection.bytes, half_bytes=connection.stuck_bytes, calls=len(ended),
        )  # fmt: skip
        connection.end(ended, error, half=half)
        for _ in ended:
            self._on_error(error)
        self._again = True
