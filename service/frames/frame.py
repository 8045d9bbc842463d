"""One frame's rows: the order they run in, their way into the staging buffers and their outputs' way out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from streamcell.service.access.grant import Members
from streamcell.service.errors import ServiceError
from streamcell.service.metrics.request_metrics import Computed
from streamcell.service.sessions.capacity import Ints
from streamcell.service.sessions.image import Bytes, Image
from streamcell.service.sessions.session import Output

Fits: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Part: TypeAlias = Literal["row", "close", "reset", "open", "fork", "snapshot", "restore"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request of a frame that is refused: element `index` of that part."""

    part: Part
    index: int
    error: ServiceError
    session_ended: bool = False


@dataclass(slots=True)
class FrameSlice:
    """Rows of a frame that run together: int64[n] `rows`, of each `counts` timesteps from its step `start` on."""

    frame: Frame
    rows: Ints
    start: int
    counts: Ints
    shortest: int
    longest: int

    def alone(self, place: int) -> FrameSlice:
        """The row at `place`, as a slice of its own."""
        count = int(self.counts[place])
        at = slice(place, place + 1)
        return FrameSlice(self.frame, self.rows[at], self.start, self.counts[at], count, count)

    def _whole(self) -> tuple[int, int] | None:
        """First and last step in the frame's tensors, if the slice's steps are one block there; else None."""
        first, last, count = int(self.rows[0]), int(self.rows[-1]), self.frame.steps
        if self.shortest != self.longest or count != self.longest or last - first + 1 != len(self.rows):
            return None
        return first * count, (last + 1) * count

    def copy_in(self, sources: Sequence[Bytes], targets: Sequence[Bytes], width: int) -> None:
        """Copy the slice's input steps to rows of `width` steps at the front of `targets`; uint8[steps, step_bytes].

        Padding repeats a row's last step, so that no value gets into a run that was not checked.
        """
        block = self._whole() if width == self.longest else None
        if block is not None:
            for source, target in zip(sources, targets, strict=True):
                target[: block[1] - block[0]] = source[block[0] : block[1]]
            return
        index = self._index(width).reshape(-1)
        for source, target in zip(sources, targets, strict=True):
            np.take(source, index, axis=0, out=target[: len(index)], mode="clip")

    def _index(self, width: int) -> Ints:
        """int64[rows, width]: where each row's steps are in the frame's tensors; beyond its length the last."""
        along = np.minimum(np.arange(width), self.counts[:, None] - 1)
        return (self.frame.begins[self.rows] + self.start)[:, None] + along

    def copy_out(self, sources: Sequence[Bytes], width: int) -> None:
        """Copy the slice's output steps from rows of `width` steps at the front of `sources` into the frame's."""
        frame = self.frame
        if frame.output is Output.NONE:
            return
        rows = np.arange(len(self.rows)) * width
        if frame.output is Output.LAST:
            done = self.start + self.counts == frame.lengths_of(self.rows)
            at, to = (rows + self.counts - 1)[done], self.rows[done]
            for source, target in zip(sources, frame.outputs, strict=True):
                target[to] = source[at]
            return
        block = self._whole() if width == self.longest else None
        if block is None:
            mask = np.arange(width) < self.counts[:, None]
            at = (rows[:, None] + np.arange(width))[mask]
            to = self._index(width)[mask]
        for source, target in zip(sources, frame.outputs, strict=True):
            if block is not None:
                target[block[0] : block[1]] = source[: block[1] - block[0]]
            else:
                target[to] = source[at]


@dataclass(slots=True, eq=False)
class Frame:
    """One frame of a stream, from its arrival to its reply. `inputs` and `outputs` are uint8[steps, step_bytes].

    Attributes:
        handles: int64[rows].
        lengths: int64[rows] timesteps; None if all rows have `steps`.
        begins: int64[rows]: each row's first step in the inputs and, in mode ALL, in the outputs.
        openings: uint8[open_count, bytes] for each open input: what the new members are given.
        number: its position in the stream, from 1 on.
        ok: bool[rows]: not refused.
        opened: int64 handles of the members that it opened.
        restore: what the stream is put back to, before the rows run.
        fork: int64 handles whose sessions are forked, after the rows have run.
        snapshot: whether an image is asked for, after that.
        forked: int64 handles of the forks.
        image: that image.
        step_indices: int64[rows], once it is done; of a frame without rows that restores, int64[opened].
        spent: what its runs spent on it so far.
    """

    generates: ClassVar[bool] = False

    handles: Ints
    lengths: Ints | None
    steps: int
    inputs: tuple[Bytes, ...]
    output: Output
    tag: int
    number: int
    answered: int | None = None
    close: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    reset: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    open_count: int = 0
    asked: int = 0  # of these, those for which the tenant has room, which is `granted`
    granted: Members | None = None
    openings: Sequence[Bytes] = ()
    restore: Image | None = None
    fork: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    snapshot: bool = False
    arrived_s: float = field(default_factory=time.perf_counter)
    begins: Ints = field(init=False)
    total: int = field(init=False)
    ok: Fits = field(init=False)
    outputs: list[Bytes] = field(default_factory=list)
    opened: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    step_indices: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    forked: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    image: Image | None = None
    refusals: list[Refusal] = field(default_factory=list)
    plan: Iterator[FrameSlice] | None = None  # set once the frame has begun
    next_slice: FrameSlice | None = None  # what runs next
    spent: Computed | None = None

    def __post_init__(self) -> None:
        rows = len(self.handles)
        self.ok = np.ones(rows, np.bool_)
        if self.lengths is None:
            self.begins = np.arange(rows) * self.steps
            self.total = rows * self.steps
        else:
            ends = np.cumsum(self.lengths)
            self.begins = ends - self.lengths
            self.total = int(ends[-1]) if rows else 0

    @property
    def begun(self) -> bool:
        """False: a frame that waits has not begun."""
        return False

    def drop(self, capacity: object) -> None:
        """Give back the room that its tenant has taken for new members; the model has given none yet."""
        if self.granted is not None:
            self.granted.drop(self.asked)

    def next_rows(self, most: int) -> int:
        """How many rows its next slice has, at most."""
        return len(self.next_slice.rows) if self.next_slice is not None else min(len(self.handles), most)

    @property
    def timesteps(self) -> int:
        """Timesteps of all rows."""
        return self.steps * len(self.handles) if self.lengths is None else int(self.lengths.sum())

    def lengths_of(self, rows: Ints) -> Ints | int:
        """Timesteps of `rows`."""
        return self.steps if self.lengths is None else self.lengths[rows]

    def refuse(self, row: int, error: ServiceError, *, session_ended: bool = False) -> None:
        """Refuse a row, once. Its outputs so far are zeroed."""
        if not self.ok[row]:
            return
        self.ok[row] = False
        self.refusals.append(Refusal("row", row, error, session_ended))
        if self.outputs and self.output is Output.ALL:
            begin = int(self.begins[row])
            end = begin + int(self.steps if self.lengths is None else self.lengths[row])
            for output in self.outputs:
                output[begin:end] = 0

    def misfit(self, input_bytes: Sequence[int]) -> bool:
        """True if an input's size does not match the rows' steps of `input_bytes` each: it must not be copied."""
        return any(
            each.shape != (self.total, size) for each, size in zip(self.inputs, input_bytes, strict=True)
        )

    def begin(self, output_bytes: Sequence[int], *, max_batch: int, max_chunk: int, ragged: bool) -> None:
        """Make room for the outputs, `output_bytes` a step each, and plan. Rows known to be bad are refused before."""
        steps = {Output.ALL: self.total, Output.LAST: len(self.handles), Output.NONE: 0}[self.output]
        self.outputs = [np.zeros((steps, size), np.uint8) for size in output_bytes if steps]
        self.plan = self._pieces(max_batch, max_chunk, ragged)
        self.advance()

    def advance(self) -> None:
        """Find what runs next, among rows that are still not refused."""
        self.next_slice = next(self.plan, None) if self.plan is not None else None

    def _pieces(self, max_batch: int, max_chunk: int, ragged: bool) -> Iterator[FrameSlice]:
        """At most `max_batch` rows each, `max_chunk` steps of a row, and rows at most twice as long as one another.

        Without lengths all rows are equally long. Lazy: a row that one slice refuses is in no later slice.
        """
        longest = self.steps if self.lengths is None else int(self.lengths.max(initial=0))
        for start in range(0, longest, max_chunk):
            if self.lengths is None:
                rows = np.flatnonzero(self.ok)
                counts = np.full(len(rows), min(self.steps - start, max_chunk))
            else:
                rows = np.flatnonzero(self.ok & (self.lengths > start))
                counts = np.minimum(self.lengths[rows] - start, max_chunk)
                order = np.argsort(counts, kind="stable")
                rows, counts = rows[order], counts[order]
            at = 0
            while at < len(rows):
                shortest = int(counts[at])
                limit = 2 * shortest if ragged else shortest
                end = min(at + max_batch, int(np.searchsorted(counts, limit, "right")))
                yield FrameSlice(self, rows[at:end], start, counts[at:end], shortest, int(counts[end - 1]))
                at = end
