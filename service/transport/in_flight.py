"""What clients have in this process's memory: half-received messages, queued work, unread replies; and its bounds.

Calls note what they hold as they go (`held_bytes`). What the core holds of messages that are half received nobody says,
but the kernel tells how many bytes a connection has brought, and its calls how many of them they were given: the
difference is in the core. A thread sums both up, off the path of a message.

Over its bound a connection is no longer read, so that HTTP/2's flow control holds its client back. If that does not
help, for the client reads no replies or what it sends is never whole, its calls end with MEMORY_IN_FLIGHT.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import grpc
import structlog

from streamcell.service.errors import MemoryInFlight, ServiceError, as_status

from .tcp_figures import TcpFigures, resident_bytes

_log = structlog.get_logger(__name__)

FRAMING_BYTES = 64  # a message costs on the wire at most, beside itself: frames, windows, pings
LARGE_BYTES = 8192  # of a reply from so many bytes on it is followed until it has gone
_CALL_BYTES = 2048  # of a call's headers
_FLOOR_BYTES = 64 * 1024  # of a connection's that are nothing half received: its beginning, TLS's too
WINDOW_BYTES = 64 * 1024  # that the core takes of a stream ahead of its being read
_LOOK_S = 0.1
_FULL_LOOK_S = 1.0  # a look at every connection, at least; and while memory grows, each time
_COST = 50  # a full look may take a fiftieth of the time
_PATIENCE_LOOKS = (
    50  # full looks that a connection that is not read may stay over its bound without growing less
)
_REASON = MemoryInFlight.reason.lower()


class Held(Protocol):
    """A call, as this module knows it."""

    peer: str

    @property
    def half_open(self) -> bool:
        """Whether a message may be on its way."""

    @property
    def messages(self) -> int:
        """How many have come."""

    def held_bytes(self) -> int:
        """Bytes of messages that are not answered and of replies that are not sent."""

    def read_again(self) -> None:
        """The connection may be read again."""

    def cut(
        self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str | bytes], ...], reason: str
    ) -> None:
        """End the call, with a status that its client gets if it reads."""

    def drop(self) -> None:
        """End it whatever its client does, after `cut`."""


class Connection:
    """One client's connection and its live calls."""

    __slots__ = (
        "_lock", "bytes_before", "calls", "cut", "half_bytes", "held_bytes", "looks_over", "peer", "read_before",
        "relieved", "stopped", "stuck_bytes", "taken", "taken_before", "told",
    )  # fmt: skip

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.calls: set[Held] = set()
        self.cut: set[Held] = set()  # that have been told to end, and should be gone at the next look
        self.taken = 0  # bytes that its calls were given, with what their framing may have cost
        self.stopped = False  # its calls are not read
        self.held_bytes = 0
        self.half_bytes = 0  # received and not with a call, at the last full look
        self.stuck_bytes = 0  # of these, of messages that are half received
        self.looks_over = self.bytes_before = 0
        self.relieved = False
        self.taken_before = 0
        self.read_before = (0, 0)  # what TCP had received and had sent
        self.told: dict[Held, int] = {}  # messages that had come by each call
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Add to `taken`, where several threads do."""
        with self._lock:
            self.taken += size

    def leave(self, call: Held) -> None:
        """A call is over."""
        self.calls.discard(call)

    @property
    def bytes(self) -> int:
        """What it has in memory."""
        return self.held_bytes + self.half_bytes

    def look(self, figures: tuple[int, int] | None) -> None:
        """Sum up its calls; `figures`: what TCP has received of it and has sent, None if that is not known."""
        calls = list(self.calls)
        for call in self.cut & self.calls:
            call.drop()
        self.cut.clear()
        self.held_bytes = sum(call.held_bytes() for call in calls)
        if figures is None:
            return
        received, sent = figures
        if received < self.read_before[0]:  # another connection from the same port
            self.read_before, self.taken_before, self.half_bytes = (0, 0), self.taken, 0
        allowed = 0 if self.read_before[0] else _FLOOR_BYTES
        # Windows are opened as replies are read, and headers are no messages.
        allowed += (sent - self.read_before[1]) // 64 + _CALL_BYTES * sum(
            call not in self.told for call in calls
        )
        taken = self.taken - self.taken_before
        came = received - self.read_before[0] - taken - taken // 64 - allowed
        self.half_bytes = max(0, self.half_bytes + came) if calls and not self.relieved else 0
        self.relieved = False
        # A call that is not being read may have its window full, and that is as it should be.
        ahead = WINDOW_BYTES * sum(not call.half_open for call in calls)
        self.stuck_bytes = max(0, self.half_bytes - ahead)
        self.read_before, self.taken_before = figures, self.taken

    def stop(self) -> None:
        """Read it no more."""
        self.stopped = True

    def go_on(self) -> None:
        """Read it again."""
        self.stopped, self.looks_over = False, 0
        for call in list(self.calls):
            call.read_again()

    def relieve(self, bound: int, error: ServiceError) -> int:
        """End calls until it is under `bound`, by all that can be told; how many."""
        calls = list(self.calls)
        ended: set[Held] = set()
        half = [call for call in calls if call.half_open]
        if self.stuck_bytes > bound // 2:
            # First those that never had a whole message, then those that had none since the last look.
            ended.update(call for call in half if not call.messages)
            if not ended:
                ended.update(call for call in half if self.told.get(call) == call.messages)
            if not ended:
                ended.update(half)
            # What was on its way to those that ended still comes, and is dropped.
            self.half_bytes = self.stuck_bytes = 0
            self.relieved = True
        held = {call: call.held_bytes() for call in calls if call not in ended}
        total = sum(held.values())
        for call in sorted(held, key=lambda each: -held[each]):
            if total <= 3 * bound // 4:
                break
            ended.add(call)
            total -= held[call]
        status = as_status(error)
        for call in ended:
            call.cut(*status, _REASON)
        self.cut = ended
        return len(ended)

    def remember(self) -> None:
        """Note how far its calls are."""
        self.told = {call: call.messages for call in list(self.calls)}


class InFlight:
    """The connections of a lane's servers."""

    def __init__(self) -> None:
        self._connections: dict[str, Connection] = {}
        self._tcp = TcpFigures()
        self._server_bytes = self._connection_bytes = 0
        self._on_error: Callable[[ServiceError], None] = lambda error: None
        self._stopping = threading.Event()
        self._again = False  # look again soon: calls have been told to end
        self.bytes = 0  # in memory, at the last full look

    def join(self, call: Held) -> Connection:
        """A call begins; its connection."""
        connection = self._connections.get(call.peer)
        if connection is None:
            connection = self._connections.setdefault(call.peer, Connection(call.peer))
        connection.calls.add(call)
        return connection

    def watch(
        self, server_bytes: int, connection_bytes: int, on_error: Callable[[ServiceError], None]
    ) -> None:
        """Keep both bounds from now on, on a thread; `on_error` is told of each call that ends for it."""
        self._server_bytes, self._connection_bytes = server_bytes, min(connection_bytes, server_bytes)
        self._on_error = on_error
        threading.Thread(target=self._watch, name="memory-in-flight", daemon=True).start()

    def stop(self) -> None:
        """Keep them no more."""
        self._stopping.set()

    def _watch(self) -> None:
        last_s, resident, pause_s = 0.0, 0, _FULL_LOOK_S
        while not self._stopping.wait(_LOOK_S):
            now_s, now = time.monotonic(), resident_bytes()
            grown = now - resident > self._connection_bytes // 8
            pressed = self.bytes > self._connection_bytes // 2
            if not (grown or pressed or self._again or now_s - last_s >= pause_s):
                continue
            self._again = False
            try:
                self.look()
            except Exception as error:  # a bug must not end the watch
                _log.error("memory in flight could not be summed up", exc_info=error)
            last_s, resident = time.monotonic(), now
            pause_s = max(_FULL_LOOK_S, _COST * (last_s - now_s))

    def look(self) -> None:
        """Sum up every connection, and do what is to be done about those over their bounds."""
        figures = self._tcp.of(self._connections)
        for peer, connection in list(self._connections.items()):
            if not connection.calls and peer not in figures:
                del self._connections[peer]  # it has gone; a call that begins just now makes another
                continue
            connection.look(figures.get(peer))
        self.bytes = sum(each.bytes for each in self._connections.values())
        rest = self.bytes
        for connection in sorted(self._connections.values(), key=lambda each: -each.bytes):
            if connection.bytes > self._connection_bytes or rest > self._server_bytes:
                rest -= connection.bytes
                self._over(connection)
            elif connection.stopped and connection.bytes < 3 * self._connection_bytes // 4:
                connection.go_on()
            connection.remember()

    def _over(self, connection: Connection) -> None:
        bound = min(self._connection_bytes, connection.bytes)
        connection.stop()
        # What is not read any more is bounded: as long as it grows less, its client is being answered and reads.
        less = connection.bytes < connection.bytes_before
        connection.looks_over = 0 if less else connection.looks_over + 1
        connection.bytes_before = connection.bytes
        if connection.stuck_bytes <= bound // 2 and connection.looks_over < _PATIENCE_LOOKS:
            return
        error = MemoryInFlight(
            f"this connection has {connection.bytes} bytes in the server's memory, of messages half received, messages "
            f"unanswered and replies unread, where it may have {self._connection_bytes} and all together "
            f"{self._server_bytes}: read replies, send less ahead, or raise --max-connection-bytes",
            bytes=connection.bytes, max_connection_bytes=self._connection_bytes, max_bytes=self._server_bytes,
        )  # fmt: skip
        ended = connection.relieve(bound, error)
        _log.warning(
            "calls ended for memory in flight", peer=connection.peer, bytes=connection.bytes, calls=ended
        )
        for _ in range(ended):
            self._on_error(error)
        connection.held_bytes, connection.half_bytes = 0, 0
        connection.go_on()
        self._again = True
