"""A stream of frames in a journal: one store of the frame's number commits all its sessions together.

Each member has two entries. A frame writes, of all members that it touches, those that do not count, with its number,
and the step of a member writes the row of the pool that does not count. Then one store of the stream's number makes all
of them count: of a member's two entries that with the larger turn counts, unless its frame is not committed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from .layout import MEMBER, Array
from .mapped_file import MappedFile
from .told import Place

Ints: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
FIELDS = ("status", "slot", "row", "applied", "refused_in")  # of a member, as its session has them


class Members(Protocol):
    """A stream's sessions, as arrays by handle."""

    def of(self, handles: Ints) -> Mapping[str, Array]:
        """Each of `FIELDS` of these members."""


class Places(Protocol):
    """The journal whose place a stream has."""

    kept: bool

    def stream_ended(self, at: int) -> None:
        """The place of a stream of frames is free."""


@dataclass(frozen=True)
class FoundStream:
    """A stream of frames of an earlier process, or a new one.

    Attributes:
        session: its id, 16 bytes.
        token_hash: SHA-256 of its token.
        attempt: of its last opening.
        window: the most frames without a reply.
        opening: the message that opened it.
        number: frames applied.
        members: MEMBER[handles], the entries that count; status 0: no member.
        replies: of the last frames, by number.
    """

    session: bytes
    token_hash: bytes
    attempt: int
    window: int
    opening: bytes
    number: int
    members: Array
    replies: Mapping[int, bytes]


def found_stream(file: MappedFile, at: int) -> FoundStream | None:
    """The stream at that place of the file; None if it cannot be one."""
    counts, arrays = file.counts, file.arrays
    _, session, token_hash, attempt, window, opening, number = arrays["streams"][at].item()
    if not 1 <= window <= counts.window or opening > counts.opening_bytes or number < 0:
        return None
    both = arrays["members"][at]
    turns = np.where((both["note"] <= number) & (both["note"] >= 0), both["turn"], 0)
    newest = turns.argmax(axis=1)
    members = both[np.arange(len(both)), newest].copy()
    members[turns.max(axis=1) <= 0] = 0
    used = np.flatnonzero(members["status"])
    members = members[: int(used[-1]) + 1 if len(used) else 0]
    slots = members["slot"][members["status"] == 1] - counts.first_slot
    rows = members["row"][members["status"] == 1] - counts.first_slot
    if (slots < 0).any() or (slots >= counts.slots).any() or (rows % max(counts.slots, 1) != slots).any():
        return None
    most = counts.stream_bytes // window
    replies = {}
    for place, (of, size) in enumerate(arrays["frame_replies"][at, :window].tolist()):
        if max(0, number - window) < of <= number and of % window == place and 0 <= size <= most:
            replies[of] = arrays["frame_bytes"][at, place * most : place * most + size].tobytes()
    return FoundStream(
        bytes(session),
        bytes(token_hash),
        attempt,
        window,
        arrays["stream_openings"][at, :opening].tobytes(),
        number,
        members,
        replies,
    )


class FrameEntry:
    """One stream of frames in a journal. Thread-safe: its members may also change between two frames.

    Attributes:
        most: bytes of the largest reply that is kept.
    """

    told = None  # it has no generations
    rows = 0  # and no rows of its own

    def __init__(self, journal: Places, file: MappedFile, at: int, window: int) -> None:
        """Take the place `at` of the file."""
        self._journal = journal
        self._at = at
        self._window = window
        arrays = file.arrays
        self.most = file.counts.stream_bytes // window
        self._stream = arrays["streams"][at : at + 1]
        self._commit_word = arrays["streams"]["number"][at : at + 1].data
        self._members = arrays["members"][at]
        self._fields = arrays["frame_replies"][at].view(np.int64).reshape(-1, 2)
        self._bytes = arrays["frame_bytes"][at]
        self._current = np.zeros(len(self._members), np.int64)  # which entry of each member counts
        self._turn = 0
        self._number = 0
        self._touched: tuple[Members, Ints] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def enter(self, found: FoundStream, opening: Array, moved: Array) -> None:
        """Begin with a stream; its members are `moved`, MEMBER[handles], as this process has them."""
        stream, window = self._stream, self._window
        stream["live"] = 0
        self._members["turn"] = 0
        self._fields[:] = 0
        opening[: len(found.opening)] = np.frombuffer(found.opening, np.uint8)
        stream["number"] = self._number = found.number
        self._turn = 1
        entries = self._members[: len(moved), 0]
        entries[:] = moved
        entries["note"], entries["turn"] = found.number, np.where(moved["status"], 1, 0)
        for number, data in found.replies.items():
            if len(data) <= self.most:
                self.keep(number, 0, data)
        stream["session"], stream["token_hash"] = np.void(found.session), np.void(found.token_hash)
        stream["attempt"], stream["window"], stream["opening"] = found.attempt, window, len(found.opening)
        stream["live"] = 1

    def attempt(self, attempt: int) -> None:
        """Another opening has taken the stream."""
        self._stream["attempt"] = attempt

    @property
    def handles(self) -> int:
        """The most handles that may be in use."""
        return len(self._members)

    def touch(self, members: Members, handles: Ints) -> None:
        """The next commit belongs to a frame that has changed these members."""
        self._touched = members, np.unique(handles[handles < len(self._members)])

    def keep(self, number: int, steps: int, data: bytes) -> None:
        """Store the reply to frame `number`, in place of the one a window earlier. It counts with the commit.

        One that is too large, because of the errors in it, is not kept.
        """
        place = number % self._window
        start = place * self.most
        fields = self._fields[place]
        with self._lock:
            if self._closed:
                return
            fields[0] = 0  # until it is whole it has no number
            if len(data) <= self.most:
                self._bytes[start : start + len(data)] = np.frombuffer(data, np.uint8)
                fields[1] = len(data)
                fields[0] = number

    def commit(self, row: int, number: int, steps: int, last: bytes = b"") -> None:
        """Commit: `number` frames are applied, with all their changes. The other arguments are for sessions."""
        touched, self._touched = self._touched, None
        with self._lock:
            if self._closed:
                return
            if touched is not None:
                self._write(*touched, number)
            self._commit_word[0] = self._number = number
            if touched is not None:
                self._current[touched[1]] ^= 1

    def settle(self, members: Members, handles: Ints) -> None:
        """These members have changed without a frame: commit that at once."""
        with self._lock:
            if not self._closed:
                self._write(members, handles, self._number)
                self._current[handles] ^= 1

    def _write(self, members: Members, handles: Ints, note: int) -> None:
        """Store the members in those entries that do not count."""
        self._turn += 1
        places = (handles, 1 - self._current[handles])
        self._members["turn"][places] = 0  # until they are whole they do not count
        for name, values in members.of(handles).items():
            self._members[name][places] = values
        self._members["note"][places] = note
        self._members["turn"][places] = self._turn

    def since(self, place: Place, number: int, told: int) -> list[bytes] | None:
        """The replies to the frames behind `place`, up to `number`; None if one of them is gone."""
        lacked = []
        for frame in range(place[0] + 1, number + 1):
            at = frame % self._window
            of, size = self._fields[at].tolist()
            if of != frame:
                return None
            lacked.append(self._bytes[at * self.most : at * self.most + size].tobytes())
        return lacked

    def close(self) -> None:
        """The stream has ended, unless the journal keeps its sessions beyond this process."""
        with self._lock:
            closed, self._closed = self._closed, True
            if closed or self._journal.kept:
                return
            self._stream["live"] = 0
        self._journal.stream_ended(self._at)


def no_members() -> Array:
    """Those of a new stream."""
    return np.zeros(0, MEMBER)
