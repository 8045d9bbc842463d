"""What a process has left in a journal's file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .layout import SESSION, Array
from .mapped_file import MappedFile
from .told import NO_GENERATIONS, Generations, Told


class KeptReply(NamedTuple):
    """A reply in a journal.

    Attributes:
        number: of its message.
        steps: for a generation, its timesteps that were answered before this reply.
        data: its bytes.
    """

    number: int
    steps: int
    data: bytes


class Ring:
    """The kept replies of one session, as they are in the file; those that are gone or torn are left out.

    Attributes:
        fields: int64[window, 3], for each place the reply's number, steps and size; zeros if there is none.
        data: uint8[window, most], their bytes. It is the file's memory.
    """

    def __init__(self, fields: Array, data: Array, number: int) -> None:
        """Take what belongs to the window before message `number`, the last one that counts.

        Args:
            fields: int64[window, 3].
            data: uint8[bytes], which the places share.
            number: messages applied.
        """
        window = len(fields)
        most = len(data) // window
        self.data = data[: window * most].reshape(window, most)
        numbers, sizes = fields[:, 0], fields[:, 2]
        whole = (numbers > max(0, number - window)) & (numbers <= number) & (sizes >= 0) & (sizes <= most)
        whole &= numbers % window == np.arange(window)
        self.fields: Array = np.where(whole[:, None], fields, 0)

    @property
    def largest(self) -> int:
        """Bytes of the largest reply."""
        return int(self.fields[:, 2].max())

    def __iter__(self) -> Iterator[KeptReply]:
        """The replies, oldest first."""
        window, most = self.data.shape
        data = memoryview(self.data.reshape(-1))  # type: ignore[arg-type]  # a buffer, which its type does not say
        for number, steps, size in sorted(self.fields.tolist()):
            if number:
                start = number % window * most
                yield KeptReply(number, steps, bytes(data[start : start + size]))


def packed(fields: memoryview, data: Array) -> tuple[bytes, bytes]:
    """The kept replies of a live session: their fields, and their bytes, one behind the other in the places' order.

    Args:
        fields: int64[3 * window], little-endian as in the file: each place's number, steps and size; zeros if there is
            no reply. None of them is torn or too old, for the session's lock is held.
        data: uint8[window, most], their bytes.
    """
    sizes = fields[2::3].tolist()
    size = sizes[0]
    if sizes.count(size) == len(sizes):  # a single copy, not one for each reply
        return fields.tobytes(), data[:, :size].tobytes()
    return fields.tobytes(), b"".join([data[at, :size].tobytes() for at, size in enumerate(sizes)])


def unpacked(places: bytes, data: bytes, window: int, most: int, number: int) -> Ring | None:
    """The kept replies of a session that comes from elsewhere, as `packed` has written them.

    Args:
        places: the fields; empty if there are no replies.
        data: the replies' bytes.
        window: the session's.
        most: bytes of a reply.
        number: messages applied.

    Returns:
        None if they are no such replies.
    """
    places = places or bytes(24 * window)
    if len(places) != 24 * window:
        return None
    fields = np.frombuffer(places, "<i8").astype(np.int64).reshape(window, 3)
    block = np.zeros((window, most), np.uint8)
    ring = Ring(fields, block.reshape(-1), number)
    sizes = ring.fields[:, 2].tolist()
    if (ring.fields != fields).any() or (fields[:, 1] < 0).any() or sum(sizes) != len(data):
        return None
    start = 0
    for at, size in enumerate(sizes):
        block[at, :size] = np.frombuffer(data[start : start + size], np.uint8)
        start += size
    return ring


class Committed(NamedTuple):
    """What a session's latest commit has made count: all of it belongs together.

    Attributes:
        number: messages applied.
        steps: timesteps applied.
        states: the bytes of a row of each state; empty if no timestep was applied.
        last: the last output's timestep that a generation goes on from; empty if there is none.
        replies: the kept replies, packed (`packed`); empty bytes if there are none.
        generations: its latest generation and the replies to it.
    """

    number: int
    steps: int
    states: Sequence[bytes] = ()
    last: bytes = b""
    replies: tuple[bytes, bytes] = (b"", b"")
    generations: Generations = NO_GENERATIONS


@dataclass(frozen=True)
class Found:
    """A session of an earlier process, or a new one.

    Attributes:
        slot: its slot in the old file.
        row: the row of its state in the old file; 0: it has applied no step.
        session: its id, 16 bytes.
        token_hash: SHA-256 of its token.
        attempt: of its last opening.
        window: the most messages without a reply.
        opening: the message that opened it.
        number: messages applied.
        steps: timesteps applied.
        ring: its kept replies; None: it has none.
        last: the last output's timestep that a generation goes on from; empty if there is none.
        generations: its latest generation and the replies to it.
        kind: what it is: SESSION, SEQUENCE, STORED.
    """

    slot: int
    row: int
    session: bytes
    token_hash: bytes
    attempt: int
    window: int
    opening: bytes
    number: int
    steps: int
    ring: Ring | None = field(default=None, compare=False)
    last: bytes = b""
    generations: Generations = field(default_factory=Generations)
    kind: int = SESSION

    @property
    def told(self) -> int:
        """Answered timesteps of message `number` + 1, if it is a generation; 0: it is none, or has not begun."""
        return self.steps - self.generations.base if self.generations.number == self.number + 1 else 0

    @property
    def known(self) -> tuple[str, bytes]:
        """Its id in hexadecimal, and the hash of its token."""
        return self.session.hex(), self.token_hash

    @property
    def replies(self) -> tuple[KeptReply, ...]:
        """The kept replies, oldest first."""
        return tuple(self.ring or ())


def found_in(file: MappedFile, at: int) -> Found | None:
    """The session at that place of the file; None if it cannot be one."""
    counts, arrays = file.counts, file.arrays
    _, session, token_hash, attempt, window, opening, kind = arrays["slots"][at].item()
    if not 1 <= window <= counts.window or opening > counts.opening_bytes:
        return None
    rows = [counts.first_slot + at, counts.first_slot + at + counts.slots]
    stamps = arrays["stamps"][rows].tolist()
    row = rows[stamps[1] > stamps[0]]
    number, steps = int(arrays["numbers"][row]), int(arrays["steps"][row])
    if min(*stamps, number, steps) < 0:
        return None
    fields = arrays["replies"].view(np.int64).reshape(counts.slots, counts.window, 3)
    generates = bool(counts.last_bytes)
    return Found(
        slot=rows[0],
        row=row if steps else 0,
        session=bytes(session),
        token_hash=bytes(token_hash),
        attempt=attempt,
        window=window,
        opening=arrays["openings"][at, :opening].tobytes(),
        number=number,
        steps=steps,
        ring=Ring(fields[at, :window], arrays["reply_bytes"][at], number),
        last=arrays["lasts"][row].tobytes() if generates and steps else b"",
        generations=told_in(file, at).found(number, steps) if generates else Generations(),
        kind=kind,
    )


def committed_in(file: MappedFile, row: int, ring: tuple[memoryview, Array], told: Told | None) -> Committed:
    """What counts of a live session: `row` of the file has its state, and `ring` its kept replies (`packed`)."""
    arrays, generates = file.arrays, told is not None
    number, steps = int(arrays["numbers"][row]), int(arrays["steps"][row])
    return Committed(
        number,
        steps,
        [state[row].tobytes() if steps else b"" for state in file.states],
        arrays["lasts"][row].tobytes() if generates and steps else b"",
        packed(*ring),
        NO_GENERATIONS if told is None else told.found(number, steps),
    )


def told_in(file: MappedFile, at: int) -> Told:
    """The generations of the session at that place of the file of a model that can generate."""
    arrays = file.arrays
    return Told(
        arrays["generations"][at : at + 1].view(np.int64),
        arrays["requests"][at],
        arrays["told"][at].view(np.int64).reshape(-1, 4),
        arrays["told_bytes"][at],
    )
