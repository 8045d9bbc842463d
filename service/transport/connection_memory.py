"""Clients' bytes in memory of one connection; see `in_flight.py`."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

import grpc

from streamcell.service.errors import MemoryInFlight, ServiceError, as_status

PATIENCE_LOOKS = 50  # looks in which a client over its bound must read one reply or complete one message
_CALL_BYTES = 2048  # of a call's headers
_FLOOR_BYTES = 64 * 1024  # of a connection's start, with TLS's: they belong to no message
_READING_BYTES = 4096  # acknowledged since the last look: more than pings, so the client reads replies
_REASON = MemoryInFlight.reason.lower()


class Held(Protocol):
    """The parts of a call that this module uses."""

    peer: str

    @property
    def half_open(self) -> bool:
        """True if a message may be in flight."""

    @property
    def messages(self) -> int:
        """The number of messages received."""

    @property
    def sent(self) -> int:
        """The number of replies sent."""

    def held(self) -> tuple[int, int]:
        """Bytes of its unanswered messages and of its unsent replies."""

    def read_again(self) -> None:
        """Resume reading: the connection is below its bound again."""

    def cut(
        self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str | bytes], ...], reason: str
    ) -> None:
        """End the call with a status, which its client gets if it reads."""

    def drop(self) -> None:
        """End the call, after `cut`, whatever its client does."""


class Seen(NamedTuple):
    """A call's progress at the last look."""

    messages: int
    sent: int
    held_bytes: int
    looks: int  # looks in a row with unsent replies of which none had been sent since the previous look


class Limits(NamedTuple):
    """Maximum bytes in grpc's core."""

    window_bytes: int  # of a call that is not being read
    ahead_bytes: int  # of all such calls of a connection
    message_bytes: int  # of one message
    process_bytes: int | None  # of all connections: the growth of the process; None if unknown


class Connection:
    """One client's connection and its live calls."""

    __slots__ = (
        "_acked_before", "_acked_regular", "_in_core", "_lock", "_received_before", "_relieved", "_room_before",
        "_taken_before", "_taken_then", "_wake", "calls", "cut", "half_bytes", "held_bytes", "look_at", "looks_stuck",
        "peer", "seen", "stopped", "stuck_bytes", "taken", "whole_bytes",
    )  # fmt: skip

    def __init__(self, peer: str, room: float = math.inf, wake: Callable[[], None] = lambda: None) -> None:
        """`room`: bytes that it may take before the first look; `wake`: makes the watch look now."""
        self.peer = peer
        self.look_at = room  # at this number of bytes `taken`, reading stops until the next look
        self._wake = wake
        self.calls: set[Held] = set()
        self.cut: set[Held] = set()  # calls told to end, which should have ended by the next look
        self.taken = 0  # bytes given to its calls, with the maximum of their framing
        self.stopped = False  # its calls are not read
        self.held_bytes = 0
        self.half_bytes = 0  # received but not given to a call, at the last look
        self.stuck_bytes = 0  # those of them that belong to half-received messages
        self.whole_bytes = 0  # of messages completed between the last two looks
        self.looks_stuck = 0  # looks in a row without a message completed since the previous look
        self.seen: dict[Held, Seen] = {}
        self._taken_before = self._received_before = self._acked_before = 0
        self._acked_regular = 0  # at the last regular look
        self._taken_then = 0  # just before the kernel's figures were read
        self._in_core = 0  # by the kernel's figures: `half_bytes` and the bytes taken since
        self._room_before = 0
        self._relieved = False
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Add to `taken`. Thread-safe."""
        with self._lock:
            self.taken += size
        if self.taken > self.look_at:
            self.pause()

    def pause(self) -> None:
        """Stop reading, because the room is used up, and make the watch look now."""
        self.stopped = True
        self._wake()

    def leave(self, call: Held) -> None:
        """Forget an ended call. It refers to its connection: a cycle would wait for the garbage collector."""
        self.calls.discard(call)
        self.seen.pop(call, None)
        self.cut.discard(call)

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return self.held_bytes + self.half_bytes

    def note_taken(self) -> None:
        """Note `taken` before the kernel's figures are read: bytes taken later may or may not be in them."""
        self._taken_then = self.taken

    def look(
        self, figures: tuple[int, int] | None, limits: Limits, *, patient: bool, regular: bool = True
    ) -> None:
        """Sum up its calls.

        Args:
            figures: bytes that TCP has received, and bytes that its client has acknowledged; None if unknown.
            limits: maximum bytes in the core.
            patient: True: while the client reads anything at all, none of its calls counts as unread.
            regular: False: an extra look, soon after another, in which nobody's patience shortens.
        """
        calls = list(self.calls)
        for call in self.cut & self.calls:
            call.drop()
        self.cut.clear()
        taken, self._taken_before = self._taken_then - self._taken_before, self._taken_then
        reads = figures is not None and figures[1] - self._acked_regular > _READING_BYTES and patient
        if regular and figures is not None:
            self._acked_regular = figures[1]
        if figures is not None:
            half_open = sum(call.half_open for call in calls)
            windows = limits.window_bytes * (len(calls) - half_open)
            # Calls that begin after this look are counted at the next.
            room = windows + (limits.window_bytes + limits.message_bytes) * half_open
            most = max(room, self._room_before)
            if limits.process_bytes is not None:
                most = min(most, limits.process_bytes)
            self._room_before = room
            self._count_half(calls, *figures, taken, most)
            # A call that is not being read may fill its window: that is normal.
            ahead = min(limits.ahead_bytes, windows)
            self.stuck_bytes = max(0, self.half_bytes - ahead)
        self.whole_bytes = taken if regular else max(self.whole_bytes, taken)
        self.looks_stuck = 0 if taken else self.looks_stuck + regular
        seen = {}
        for call in calls:
            unanswered, unsent = call.held()
            before, sent = self.seen.get(call), call.sent
            unread = before is not None and before.sent == sent and unsent and not reads
            looks = before.looks + regular if before is not None and unread else 0
            seen[call] = Seen(call.messages, sent, unanswered + unsent, looks)
        self.seen = {call: each for call, each in seen.items() if call in self.calls}
        self.held_bytes = sum(each.held_bytes for each in seen.values())

    def _count_half(self, calls: list[Held], received: int, acked: int, taken: int, most: int) -> None:
        since = self.taken - self._taken_then
        if acked < self._acked_before:  # another connection from the same port
            self._received_before = self._acked_before = self._acked_regular = self._in_core = taken = 0
        allowed = 0 if self._received_before else _FLOOR_BYTES
        # Reading replies sends window updates, and headers belong to no message.
        allowed += (acked - self._acked_before) // 64 + _CALL_BYTES * sum(
            call not in self.seen for call in calls
        )
        came = received - self._received_before - taken - taken // 64 - allowed
        self._in_core = max(0, self._in_core + came) if calls and not self._relieved else 0
        self.half_bytes = min(max(0, self._in_core - since), most)
        self._in_core = min(self._in_core, most + since)
        self._relieved = False
        self._received_before, self._acked_before = received, acked

    def correct(self, excess: int) -> None:
        """Reduce the estimate of half-received bytes by `excess`."""
        self.half_bytes -= excess
        self._in_core = max(0, self._in_core - excess)
        self.stuck_bytes = max(0, self.stuck_bytes - excess)

    def stop(self) -> None:
        """Stop reading its calls."""
        self.stopped = True

    def go_on(self) -> None:
        """Resume reading its calls."""
        self.stopped = False
        for call in list(self.calls):
            call.read_again()

    def half_received(self, before: dict[Held, Seen]) -> set[Held]:
        """The calls that probably have half-received messages; `before`: the calls at the look before the last."""
        half = [call for call in self.calls if call.half_open]
        # First calls that never had a whole message, then calls that had none since `before`.
        return (
            {call for call in half if not call.messages}
            or {call for call in half if call in before and before[call].messages == call.messages}
            or set(half or self.calls)
        )

    def unread(self, bound: int) -> set[Held]:
        """Calls with unread replies whose end lets it be read again below `bound`; empty if they hold little.

        What is in the core counts too: neither of both may be enough to act alone.
        """
        stalled = {
            call: each.held_bytes for call, each in list(self.seen.items()) if each.looks >= PATIENCE_LOOKS
        }
        if sum(stalled.values()) <= bound // 4:
            return set()
        found, freed = set(), 0
        for call in sorted(stalled, key=lambda each: -stalled[each]):
            if self.bytes - freed <= 3 * bound // 4 or self.held_bytes - freed <= bound // 2:
                break
            found.add(call)
            freed += stalled[call]
        return found

    def end(self, calls: set[Held], error: ServiceError, *, half: bool) -> None:
        """End `calls`. `half`: because of half-received messages."""
        if half:  # bytes in flight to them still arrive, and are dropped
            self.half_bytes = self.stuck_bytes = 0
            self._relieved = True
        status = as_status(error)
        for call in calls:
            call.cut(*status, _REASON)
        self.cut = calls
