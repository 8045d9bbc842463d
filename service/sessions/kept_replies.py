"""Replies that resumable sessions keep until their clients have them: bounded by messages, and by bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import NamedTuple, TypeAlias

# How far a client is: it has all replies to so many messages, and so many timesteps of the next one, a generation.
Place: TypeAlias = tuple[int, int]

_RELIEF = 8  # over the bound for all, an eighth of it is freed at once


class KeptReply(NamedTuple):
    """One reply as it was sent, and the place of a client that has it."""

    place: Place
    data: bytes


# As `KeptReply(…)`, without a call of Python code for each message.
_reply: Callable[[tuple[Place, bytes]], KeptReply] = partial(tuple.__new__, KeptReply)


class KeptRoom:
    """The bounds on kept replies, and what all sessions keep. Its lock guards all `KeptReplies`.

    Attributes:
        max_window: the most messages without a reply that a session may have.
        bytes: of all sessions.
        dropped: replies that were dropped because of a bound on bytes, so far.
    """

    def __init__(self, session_bytes: int, all_bytes: int, max_window: int) -> None:
        """The bounds: bytes of one session and of all, and messages without a reply."""
        self.session_bytes = session_bytes
        self.all_bytes = all_bytes
        self.max_window = max_window
        self.bytes = self.dropped = 0
        self.lock = threading.Lock()
        self._sessions: set[KeptReplies] = set()

    def figures(self) -> tuple[int, int]:
        """The bytes kept now, and the replies dropped so far because of a bound."""
        return self.bytes, self.dropped

    def join(self, kept: KeptReplies) -> None:
        """Count `kept` in."""
        with self.lock:
            self._sessions.add(kept)

    def leave(self, kept: KeptReplies) -> None:
        """Count `kept`, which is empty, no more. With the lock held."""
        self._sessions.discard(kept)

    def relieve(self) -> None:
        """Free an eighth of the room, by one level down to which all sessions that keep more drop their oldest replies.

        Sessions that keep less lose nothing. With the lock held.
        """
        left = self.all_bytes - self.all_bytes // _RELIEF
        sessions = sorted(self._sessions, key=lambda each: each.bytes)
        for place, each in enumerate(sessions):
            level = left // (len(sessions) - place)
            if each.bytes > level:
                for larger in sessions[place:]:
                    larger.shrink(level)
                return
            left -= each.bytes


class KeptReplies:
    """The replies of one session, oldest first. Thread-safe.

    Attributes:
        bytes: of all of them.
        gone: the place of the newest reply that was dropped.
    """

    __slots__ = ("_replies", "_room", "_window", "bytes", "gone")

    def __init__(self, window: int, room: KeptRoom) -> None:
        """Keep the replies to the last `window` messages, within the bounds of `room`."""
        self._window = window
        self._room = room
        self._replies: deque[KeptReply] = deque()
        self.bytes = 0
        self.gone: Place = (0, 0)
        room.join(self)

    def add(self, place: Place, data: bytes) -> None:
        """Keep a reply; a client that has it is at `place`."""
        room, replies, size = self._room, self._replies, len(data)
        with room.lock:
            replies.append(_reply((place, data)))
            until = (place[0] - self._window, 0)
            if replies[0][0] == until:  # usually one comes and one goes
                self.gone, dropped = replies.popleft()
                size -= len(dropped)
            elif replies[0][0] < until:
                self._drop_until(until)
            self.bytes += size
            room.bytes += size
            if self.bytes > room.session_bytes:
                self.shrink(room.session_bytes)
            if room.bytes > room.all_bytes:
                room.relieve()

    def forget(self, place: Place) -> None:
        """Drop the replies that a client at `place` has."""
        with self._room.lock:
            self._drop_until(place)

    def since(self, place: Place) -> list[bytes] | None:
        """The replies that a client at `place` lacks; None if one of them is gone."""
        with self._room.lock:
            if place < self.gone:
                return None
            return [reply.data for reply in self._replies if reply.place > place]

    def at(self, place: Place) -> bytes | None:
        """The reply that brings a client to `place`; None if it is not kept."""
        with self._room.lock:
            return next((reply.data for reply in self._replies if reply.place == place), None)

    @property
    def of_generation(self) -> int:
        """The number of replies kept of a generation that has not ended."""
        with self._room.lock:
            return sum(1 for _ in takewhile(lambda reply: reply.place[1], reversed(self._replies)))

    def clear(self) -> None:
        """Drop all: the session has ended."""
        with self._room.lock:
            while self._replies:
                self._drop()
            self._room.leave(self)

    # With the room's lock held

    def shrink(self, most_bytes: int) -> None:
        """Drop the oldest replies until at most `most_bytes` are left."""
        while self.bytes > most_bytes:
            self._drop()
            self._room.dropped += 1

    def _drop_until(self, place: Place) -> None:
        while self._replies and self._replies[0].place <= place:
            self._drop()

    def _drop(self) -> None:
        self.gone, data = self._replies.popleft()
        self.bytes -= len(data)
        self._room.bytes -= len(data)
