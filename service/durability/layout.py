"""What lies where in a journal: one file for each model, with two rows of state for each session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

PAGE = 4096
FORMAT = 3
PLACES = 36  # replies of generations that are kept for each session

# What is in a slot: a session of its own, a sequence of the Open Inference Protocol, or a session in a shared store,
# which a new process takes from there.
SESSION, SEQUENCE, STORED = 0, 1, 2

# One for each slot. `live` is stored last when a session opens, and first when it ends.
SLOT = np.dtype(
    [
        ("live", "<u8"),
        ("session", "V16"),
        ("token_hash", "V32"),
        ("attempt", "<u8"),
        ("window", "<u4"),
        ("opening", "<u4"),  # bytes of `openings` that are used
        ("kind", "<u8"),
    ]
)
# One for each place of a session's ring: the reply's number, and where its bytes are.
REPLY = np.dtype([("number", "<i8"), ("steps", "<i8"), ("size", "<i8")])
# The latest generation of each session: its message's number, the timesteps before it, and bytes of its request.
GENERATION = np.dtype([("number", "<i8"), ("base", "<i8"), ("size", "<i8")])
# One for each place of the replies to generations' steps.
TOLD = np.dtype([("number", "<i8"), ("begin", "<i8"), ("end", "<i8"), ("size", "<i8")])
# One for each stream of frames; `number`, the frames applied, is what commits one.
STREAM = np.dtype(
    [
        ("live", "<u8"),
        ("session", "V16"),
        ("token_hash", "V32"),
        ("attempt", "<u8"),
        ("window", "<u4"),
        ("opening", "<u4"),
        ("number", "<i8"),
    ]
)
# Two for each member of a stream: the frame that has written it, the order of writing, and what the member is.
MEMBER = np.dtype(
    [(name, "<i8") for name in ("note", "turn", "status", "slot", "row", "applied", "refused_in")]
)
FRAME_REPLY = np.dtype([("number", "<i8"), ("size", "<i8")])


@dataclass(frozen=True)
class Counts:
    """The sizes that a server chooses. Two journals of one model may differ in them.

    Attributes:
        first_slot: the pool's first row that belongs to a session.
        slots: sessions. Row `slot` of the pool and row `slot + slots` are those of one session.
        window: the most messages without a reply that a session may have.
        reply_bytes: of the replies that are kept for one session.
        opening_bytes: of the message that opened one session.
        last_bytes: of the last output's timestep that a generation goes on from; 0: the model cannot generate.
        request_bytes: of the message that asked for a session's latest generation.
        streams: streams of frames.
        stream_bytes: of the replies that are kept for one stream of frames.
    """

    first_slot: int
    slots: int
    window: int
    reply_bytes: int
    opening_bytes: int
    last_bytes: int = 0
    request_bytes: int = 0
    streams: int = 0
    stream_bytes: int = 0

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
        # Commits so far; 0: none yet. Of a session's two rows the one with the larger stamp counts.
        ("stamps", np.int64, (rows,)),
        # Messages applied, and timesteps.
        ("numbers", np.int64, (rows,)),
        ("steps", np.int64, (rows,)),
        ("replies", REPLY, (slots, counts.window)),
        ("reply_bytes", np.uint8, (slots, counts.reply_bytes)),
    ]
    if counts.last_bytes:
        arrays += [
            ("lasts", np.uint8, (rows, counts.last_bytes)),
            ("generations", GENERATION, (slots,)),
            ("requests", np.uint8, (slots, counts.request_bytes)),
            ("told", TOLD, (slots, PLACES)),
            ("told_bytes", np.uint8, (slots, counts.reply_bytes)),
        ]
    if counts.streams:
        streams = counts.streams
        arrays += [
            ("streams", STREAM, (streams,)),
            ("stream_openings", np.uint8, (streams, counts.opening_bytes)),
            ("members", MEMBER, (streams, slots, 2)),
            ("frame_replies", FRAME_REPLY, (streams, counts.window)),
            ("frame_bytes", np.uint8, (streams, counts.stream_bytes)),
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
