"""What clients have in this process's memory: half-received messages, queued work, unread replies; and its bounds.

Calls note what they hold as they go (`held_bytes`). What the core holds of messages that are half received nobody says,
but the kernel tells how many bytes a connection has brought, and its calls how many of them they were given: the
difference is in the core. A thread sums both up, off the path of a message. Bytes of calls that have ended before they
were given them are in that difference and no longer in memory, so it may be no more than the live calls can hold, nor
than the process has grown.

Over its bound a connection is no longer read: HTTP/2's flow control holds its client back until enough is answered.
Between two looks it may bring as much as it had room for at the first of them; then its calls read no more, and the
thread looks at once. That is all that happens to a client that sends far ahead, however long the server takes. Calls
end with MEMORY_IN_FLIGHT only if it is the client that the server waits for: it reads no replies, or sends no whole
messages.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Container

import structlog

from streamcell.service.errors import MemoryInFlight, ServiceError

from .connection_memory import PATIENCE_LOOKS, Connection, Held, Limits, Seen
from .tcp_figures import TcpFigures, memory_bytes, trim_memory

_log = structlog.get_logger(__name__)

FRAMING_BYTES = 64  # a message costs on the wire at most, beside itself: frames, windows, pings
LARGE_BYTES = 8192  # of a reply from so many bytes on it is followed until it has gone
# What the core takes of a stream ahead of its being read: more is faster for large messages, less keeps the windows of
# as many streams within a connection's bound.
_LEAST_WINDOW_BYTES, _MOST_WINDOW_BYTES, _WINDOWS = 64 * 1024, 1024 * 1024, 2048
_LOOK_S = 0.1
_FULL_LOOK_S = 1.0  # between two looks at every connection, while nothing is the matter
_COST = 50  # a look may take a fiftieth of the time
_URGENT_COST = 4  # … or a quarter, if much is in memory


def window_bytes(connection_bytes: int) -> int:
    """What a stream may send ahead of its being read, if its connection may have so many bytes in memory."""
    return min(_MOST_WINDOW_BYTES, max(_LEAST_WINDOW_BYTES, connection_bytes // _WINDOWS))


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
        self._wake = threading.Event()  # look now
        self._again = False  # look again soon: calls have been told to end
        self.bytes = 0  # in memory, at the last look
        self.held_back = 0  # connections that are not read

    def join(self, call: Held) -> Connection:
        """A call begins; its connection."""
        connection = self._connections.get(call.peer)
        if connection is None:
            room = self._room(0)
            connection = self._connections.setdefault(call.peer, Connection(call.peer, room, self._wake.set))
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
        self._wake.set()

    def _room(self, held: int) -> float:
        """Bytes that a connection which has `held` in memory may take before the next look."""
        if not self._connection_bytes:
            return math.inf
        # Of what is left for all of them each may take its part, or what does no harm.
        left = max(self._server_bytes - self.bytes, 0) // max(1, len(self._connections))
        return min(max(0, self._connection_bytes - held), max(left, self._server_bytes // 64))

    def _watch(self) -> None:
        last_s, took_s, memory = 0.0, 0.0, 0
        while True:
            woken = self._wake.wait(_LOOK_S)
            self._wake.clear()
            now_s, now = time.monotonic(), self._memory()
            grown = now - memory > self._connection_bytes // 8
            pressed = woken or self.held_back or self._again or self.bytes > self._connection_bytes // 2
            urgent = grown or pressed
            pause_s = _URGENT_COST * took_s if urgent else max(_FULL_LOOK_S, _COST * took_s)
            if now_s - last_s < pause_s and not woken:
                continue
            if self._stopping.wait(max(0.0, last_s + pause_s - now_s)):
                return
            now_s = time.monotonic()
            self._again = False
            try:
                self.look()
            except Exception as error:  # a bug must not end the watch
                _log.error("memory in flight could not be summed up", exc_info=error)
            last_s, memory = time.monotonic(), now
            took_s = last_s - now_s

    def look(self) -> None:
        """Sum up every connection, and do what is to be done about those over their bounds."""
        for connection in list(self._connections.values()):
            connection.note_taken()
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
        for connection in self._connections.values():
            connection.look_at = connection.taken + self._room(connection.bytes)
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
            connection.correct(excess)

    def _waits_for_the_rest(self, connection: Connection) -> bool:
        """Whether it is half-received messages that take a connection over its bound, and no more of them comes."""
        stuck = connection.stuck_bytes
        # Of half-received messages memory grows though nothing is read: soon, if it is much, and more than a client
        # that completes them as fast as it begins others has on their way.
        grows = 2 if connection.whole_bytes > stuck // 4 else 1
        much = stuck > grows * self._connection_bytes or self.bytes > 3 * self._server_bytes // 2
        return stuck > self._bound(connection) // 2 and (much or connection.looks_stuck >= PATIENCE_LOOKS)

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
