"""What a process has left in a journal's file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .layout import Array
from .mapped_file import MappedFile


@dataclass(frozen=True)
class KeptReply:
    """A reply in a journal.

    Attributes:
        number: of its message.
        steps: timesteps applied with it.
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
        for number, steps, size in sorted(self.fields.tolist()):
            if number:
                yield KeptReply(number, steps, self.data[number % len(self.data), :size].tobytes())


@dataclass(frozen=True)
class Found:
    """A session that another process has left, or that begins.

    Attributes:
        slot: its slot in the old file.
        row: the row of its state in the old file; 0: it has applied no step.
        session: its id, 16 bytes.
        token_hash: SHA-256 of its token.
        attempt: of its last opening.
        window: the most messages without a reply.
        opening: the message that opened it.
        number: messages applied.
        stamp: timesteps applied.
        ring: its kept replies; None: it has none.
    """

    slot: int
    row: int
    session: bytes
    token_hash: bytes
    attempt: int
    window: int
    opening: bytes
    number: int
    stamp: int
    ring: Ring | None = field(default=None, compare=False)

    @property
    def replies(self) -> tuple[KeptReply, ...]:
        """The kept replies, oldest first."""
        return tuple(self.ring or ())


def found_in(file: MappedFile, at: int) -> Found | None:
    """The session at that place of the file; None if it cannot be one."""
    counts, arrays = file.counts, file.arrays
    _, session, token_hash, attempt, window, opening = arrays["slots"][at].item()
    if not 1 <= window <= counts.window or opening > counts.opening_bytes:
        return None
    rows = [counts.first_slot + at, counts.first_slot + at + counts.slots]
    stamps = arrays["stamps"][rows].tolist()
    row = rows[stamps[1] > stamps[0]]
    stamp, number = max(stamps), int(arrays["numbers"][row])
    if stamp < 0 or number < 0:
        return None
    fields = arrays["replies"].view(np.int64).reshape(counts.slots, counts.window, 3)
    return Found(
        slot=rows[0],
        row=row if stamp else 0,
        session=bytes(session),
        token_hash=bytes(token_hash),
        attempt=attempt,
        window=window,
        opening=arrays["openings"][at, :opening].tobytes(),
        number=number,
        stamp=stamp,
        ring=Ring(fields[at, :window], arrays["reply_bytes"][at], number),
    )
