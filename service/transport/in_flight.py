"""Bounds clients' bytes in this process's memory: half-received messages, queued work, unread replies.

Calls note what they hold (`held_bytes`). grpc's core does not report half-received bytes, but the kernel counts the
bytes that a connection has received and the calls count those that they were given: the difference is in the core. A
thread adds both up, off the path of a message. The difference also contains bytes of calls that ended before they were
given them, which are no longer in memory. So it is limited to what the live calls can hold and what the process has
grown.

A connection over its bound is not read: HTTP/2's flow control stops its client until enough is answered. On the
lane of threads, which reads furthest ahead, it may take between two looks the room that it had at the first of them;
then its calls stop reading, and the thread looks at once.
Nothing else happens to a client that sends far ahead, however slow the server is. Calls end with MEMORY_IN_FLIGHT only
if the server waits for the client: it reads no replies, or completes no messages.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Container

import structlog

from streamcell.service.errors import MemoryInFlight, ServiceError

from .connection_memory import PATIENCE_LOOKS, Connection, Held, Limits, Seen
from .segments import Segments, Socket
from .tcp_figures import ResidentMemory, TcpFigures, memory_bytes, trim_memory

_log = structlog.get_logger(__name__)

FRAMING_BYTES = 64  # maximum overhead of a message on the wire: frames, windows, pings
LARGE_BYTES = 8192  # replies from this size on are counted until they are sent
# A stream's window: bytes that the core takes before the stream is read. A larger one is faster for large messages, a
# smaller one keeps all streams' windows within a connection's bound.
_LEAST_WINDOW_BYTES, _MOST_WINDOW_BYTES, _WINDOWS = 64 * 1024, 1024 * 1024, 2048
_POLL_S = 0.02  # between two readings of the process's memory: if it has grown, look at once
_LOOK_S = 0.1
_FULL_LOOK_S = 1.0  # between two looks at every connection, while all are below their bounds
_COST = 50  # looks take at most a fiftieth of the time
_URGENT_COST = 4  # or a quarter, if much is in memory


def window_bytes(connection_bytes: int) -> int:
    """A stream's window, if its connection may have `connection_bytes` in memory."""
    return min(_MOST_WINDOW_BYTES, max(_LEAST_WINDOW_BYTES, connection_bytes // _WINDOWS))


class InFlight:
    """The connections of a lane's servers."""

    def __init__(
        self,
        figures: Callable[[Container[str]], dict[str, tuple[int, int]]] | None = None,
        memory: Callable[[], int] = memory_bytes,
        segments: Segments | None = None,
    ) -> None:
        """Make it without bounds.

        Args:
            figures: like `TcpFigures.of`.
            memory: returns the process's bytes, 0 if unknown.
            segments: told the sockets of its connections, if these may be held.
        """
        self._connections: dict[str, Connection] = {}
        self._tcp = TcpFigures()
        self._figures = figures or self._tcp.of
        self.segments = segments  # None: no socket is held
        self._holdable: dict[str, Socket] = {}  # what `segments` has been told
        self._memory = memory
        self._least_memory = 0  # the process's, since the baseline was noted
        self._grew = False  # clients' bytes took much since then
        self._server_bytes = self._connection_bytes = self._message_bytes = 0
        self._on_error: Callable[[ServiceError], None] = lambda error: None
        self._stopping = threading.Event()
        self._wake = threading.Event()  # look now
        self._again = False  # look again soon: calls have been told to end
        self.bytes = 0  # in memory, at the last look
        self.held_back = 0  # connections that are not read

    def join(self, call: Held) -> Connection:
        """Add a new call; returns its connection."""
        connection = self._connections.get(call.peer)
        if connection is None:
            room = self._room(0)
            connection = self._connections.setdefault(call.peer, Connection(call.peer, room, self._wake.set))
        connection.calls.add(call)
        return connection

    def watch(self) -> None:
        """Start the thread that keeps the bounds."""
        self._note_baseline()
        threading.Thread(target=self._watch, name="memory-in-flight", daemon=True).start()

    def bound(
        self,
        server_bytes: int,
        connection_bytes: int,
        message_bytes: int,
        on_error: Callable[[ServiceError], None],
    ) -> None:
        """Set the bounds.

        Args:
            server_bytes: maximum bytes of all connections.
            connection_bytes: maximum bytes of one connection.
            message_bytes: the largest message that the core takes.
            on_error: called for each call that ends because of a bound.
        """
        self._server_bytes, self._connection_bytes = server_bytes, min(connection_bytes, server_bytes)
        self._message_bytes = message_bytes
        self._on_error = on_error

    def listens(self, port: int, *, hold: bool) -> None:
        """Note the server's port; `hold`: whether segments to its clients may be held."""
        self._tcp.port = port
        if not hold:
            self.segments = None

    def figures(self) -> tuple[int, int]:
        """Bytes in memory and connections that are not read, at the last look."""
        return self.bytes, self.held_back

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._wake.set()
        self._tell({})

    def _tell(self, sockets: dict[str, Socket]) -> None:
        if self._stopping.is_set():  # a look may just be ending
            sockets = {}
        known, self._holdable = self._holdable, sockets
        if self.segments is not None:
            self.segments.learn(known, sockets)

    def _note_baseline(self) -> None:
        """Note the process's memory, nearly without clients' bytes: any growth from now on may be theirs.

        Free memory that malloc keeps is returned first. It would hide bytes that take its place.
        """
        trim_memory()
        self._least_memory = self._memory()
        self._grew = False

    def _room(self, held: int) -> float:
        """Bytes that a connection with `held` bytes in memory may take before the next look."""
        if not self._connection_bytes:
            return math.inf
        # Each connection may take its share of what is left for all, or a harmless minimum.
        left = max(self._server_bytes - self.bytes, 0) // max(1, len(self._connections))
        return min(max(0, self._connection_bytes - held), max(left, self._server_bytes // 64))

    def _watch(self) -> None:
        resident = ResidentMemory()
        try:
            self._watch_by(resident)
        finally:
            resident.close()

    def _watch_by(self, resident: Callable[[], int]) -> None:
        last_s, took_s, memory = 0.0, 0.0, 0
        regular_s = 0.0
        while True:
            # Without a client nothing grows that a look could bound.
            woken = self._wake.wait(_POLL_S if self._connections else _LOOK_S)
            self._wake.clear()
            now_s, now = time.monotonic(), resident()
            grown = now - memory > self._connection_bytes // 8
            if not grown and not woken and now_s - last_s < _LOOK_S:
                continue
            pressed = woken or self.held_back or self._again or self.bytes > self._connection_bytes // 2
            urgent = grown or pressed
            pause_s = _URGENT_COST * took_s if urgent else max(_FULL_LOOK_S, _COST * took_s)
            if now_s - last_s < pause_s and not woken:
                continue
            if self._stopping.wait(max(0.0, last_s + pause_s - now_s)):
                return
            now_s = time.monotonic()
            self._again = False
            regular = now_s - regular_s >= _LOOK_S
            regular_s = now_s if regular else regular_s
            try:
                self.look(regular=regular)
            except Exception as error:  # a bug must not end the watch
                _log.error("memory in flight could not be summed up", exc_info=error)
            last_s, memory = time.monotonic(), now
            took_s = last_s - now_s

    def look(self, *, regular: bool = True) -> None:
        """Sum up every connection, and act on those over their bounds. `regular`: it counts for a client's patience."""
        for connection in list(self._connections.values()):
            connection.note_taken()
        figures, memory = self._figures(self._connections), self._memory()
        self._least_memory = min(self._least_memory or memory, memory)
        self._tell(self._tcp.sockets)
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
                del self._connections[peer]  # it has closed; a call that begins at this moment makes another
                connection.seen = {}
                continue
            before[peer] = connection.seen
            patient = not crowded and connection.bytes <= 2 * self._connection_bytes
            connection.look(figures.get(peer), limits, patient=patient, regular=regular)
        self.bytes = rest = sum(each.bytes for each in self._connections.values())
        if self.bytes > self._connection_bytes // 8:
            self._grew = True
        elif self._grew and self.bytes <= self._connection_bytes // 64:
            self._note_baseline()
        for connection in sorted(self._connections.values(), key=lambda each: -each.bytes):
            bound = self._connection_bytes
            if connection.bytes > bound or rest > self._server_bytes:
                rest -= connection.bytes
                bound = min(
                    bound, connection.bytes
                )  # if all together have too much, each gives of what it has
            elif not connection.stopped:
                continue
            elif connection.bytes < 3 * self._connection_bytes // 4:
                connection.go_on()
                continue
            # It is over its bound, or was and is not well below it yet: the server may be waiting for its client.
            if connection.held_bytes > bound // 2:
                connection.stop()
            elif connection.stopped:  # the rest is in the core, and only reading frees it
                connection.go_on()
            self._end_offenders(connection, bound, before.get(connection.peer, {}))
        for connection in self._connections.values():
            connection.look_at = connection.taken + self._room(connection.bytes)
        self.held_back = sum(each.stopped for each in self._connections.values())

    def _correct(self, connection: Connection) -> None:
        """Limit the estimate to the process's growth after free memory was returned to the system."""
        trim_memory()
        memory = self._memory()
        excess = connection.half_bytes - max(0, memory - self._least_memory)
        if memory and excess > 0:
            connection.correct(excess)

    def _waits_for_the_rest(self, connection: Connection, bound: int) -> bool:
        """True if half-received messages take a connection over its bound and their rest does not arrive."""
        stuck = connection.stuck_bytes
        # Half-received messages grow although nothing is read. So act soon if they are much, and more than a client
        # that completes messages as fast as it begins others has in flight.
        grows = 2 if connection.whole_bytes > stuck // 4 else 1
        much = stuck > grows * self._connection_bytes or self.bytes > 3 * self._server_bytes // 2
        return stuck > bound // 2 and (much or connection.looks_stuck >= PATIENCE_LOOKS)

    def _end_offenders(self, connection: Connection, bound: int, before: dict[Held, Seen]) -> None:
        """End the calls of a connection over its bound for whose client the server can only wait."""
        half = self._waits_for_the_rest(connection, bound)
        if half:
            self._correct(connection)
            if not self._waits_for_the_rest(connection, bound):
                return
        ended = connection.half_received(before) if half else connection.unread(bound)
        if not ended:
            return
        error = MemoryInFlight(
            f"this connection has {connection.bytes} bytes in the server's memory (half-received messages, unanswered "
            f"messages and unread replies); it may have {self._connection_bytes}, and all connections together "
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
