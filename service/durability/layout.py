"""What lies where in a journal: one file for each model, with two rows of state for each session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

PAGE = 4096
FORMAT = 1

# One for each slot. `live` is stored last when a session opens, and first when it ends.
SLOT = np.dtype(
    [
        ("live", "<u8"),
        ("session", "V16"),
        ("token_hash", "V32"),
        ("attempt", "<u8"),
        ("window", "<u4"),
        ("opening", "<u4"),  # bytes of `openings` that are used
    ]
)
# One for each place of a session's ring: the reply's number, and where its bytes are.
REPLY = np.dtype([("number", "<i8"), ("steps", "<i8"), ("size", "<i8")])


@dataclass(frozen=True)
class Counts:
    """The sizes that a server chooses. Two journals of one model may differ in them.

    Attributes:
        first_slot: the pool's first row that belongs to a session.
        slots: sessions. Row `slot` of the pool and row `slot + slots` are those of one session.
        window: the most messages without a reply that a session may have.
        reply_bytes: of the replies that are kept for one session.
        opening_bytes: of the message that opened one session.
    """

    first_slot: int
    slots: int
    window: int
    reply_bytes: int
    opening_bytes: int

    @property
    def rows(self) -> int:
        """Rows of the pool."""
        return self.first_slot + 2 * self.slots


@dataclass(frozen=True)
class Section:
    """An array of the file, at `offset`, a multiple of the page's size."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Bytes of the array."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


def sections(counts: Counts, states: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> list[Section]:
    """The arrays of a file, in order: of sessions, of rows, of kept replies, and one for each state.

    Args:
        counts: its sizes.
        states: dtype and shape of one row of each state.
    """
    rows, slots = counts.rows, counts.slots
    arrays: list[tuple[str, Any, tuple[int, ...]]] = [
        ("slots", SLOT, (slots,)),
        ("openings", np.uint8, (slots, counts.opening_bytes)),
        # Timesteps applied; 0: none yet. Of a session's two rows the one with the larger stamp counts.
        ("stamps", np.int64, (rows,)),
        # Messages applied.
        ("numbers", np.int64, (rows,)),
        ("replies", REPLY, (slots, counts.window)),
        ("reply_bytes", np.uint8, (slots, counts.reply_bytes)),
    ]
    arrays += [(f"state {at}", dtype, (rows, *shape)) for at, (dtype, shape) in enumerate(states)]
    found, offset = [], PAGE
    for name, dtype, shape in arrays:
        section = Section(name, np.dtype(dtype), shape, offset)
        found.append(section)
        offset += -(-section.bytes // PAGE) * PAGE
    return found


def file_bytes(found: Sequence[Section]) -> int:
    """Bytes of a file with these sections."""
    last = found[-1]
    return last.offset + -(-last.bytes // PAGE) * PAGE
