"""Which timesteps of the rings run next: chosen with numpy, in as many operations for many timesteps as for one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from streamcell.service.errors import ServiceError
from streamcell.service.processes.ring import Records
from streamcell.service.processes.ring_records import Head, Layout, head_of
from streamcell.service.sessions.capacity import Ints
from streamcell.service.sessions.session import Session


class SeatArrays(Protocol):
    """A model's sessions of front ends as arrays by seat, and the way back to them: `RingSessions` is one."""

    inputs: Layout
    outputs: Layout
    applied: Ints
    queued: Ints
    fresh: np.ndarray
    used_s: np.ndarray

    def answer(self, records: Records) -> None:
        """Send replies."""

    def fail(self, seat: int, slot_version: int, error: ServiceError) -> None:
        """Have a session end."""


@dataclass(slots=True)
class RingBatch:
    """Timesteps that run together, row by row and in order.

    Attributes:
        source: whose they are.
        records: uint8[n, record_bytes]; `head` their headers.
        row: int64[n], each record's row; `place`: int64[n], its timestep there.
        seats: int64[rows].
        counts: int64[rows] timesteps.
    """

    source: SeatArrays
    records: Records
    head: Head
    row: Ints
    place: Ints
    seats: Ints
    counts: Ints
    taken_s: float = field(default_factory=time.perf_counter)

    @property
    def sessions(self) -> Iterator[Session]:
        """None that the batcher's queues know."""
        return iter(())

    @property
    def steps(self) -> int:
        """The longest row's."""
        return int(self.counts.max())

    def keep(self, kept: np.ndarray) -> RingBatch:
        """The batch of those records for which bool[n] `kept` holds: of each row none, or its first so many."""
        rows, row = np.unique(self.row[kept], return_inverse=True)
        counts = np.bincount(row, minlength=len(rows))
        return RingBatch(
            self.source, self.records[kept], self.head[kept], row.astype(np.int64), self.place[kept],
            self.seats[rows], counts.astype(np.int64), self.taken_s,
        )  # fmt: skip


def one_step_each(head: Head, scratch: Ints) -> bool:
    """Whether all are whole messages of one timestep and of sessions of their own, as most are; `choose` is slower.

    `scratch`, int64[seats], is written to.
    """
    if not (head["steps"] == 1).all():
        return False
    seat, places = head["seat"], np.arange(len(head))
    scratch[seat] = places
    return bool((scratch[seat] == places).all())


def choose(
    records: Records, *, max_batch: int, max_chunk: int, ragged: bool, coalesce: bool
) -> tuple[Ints, Ints, Ints, Ints, Ints] | None:
    """What of `records`, in the order in which they came, runs next.

    As `batch.BatchQueue`: each session's whole messages up to `max_chunk` timesteps, or a part of a longer one; the
    first session leads, and those join it that keep less than half of the run from being padding.

    Args:
        records: uint8[n, record_bytes], all of them timesteps.
        max_batch: the most rows.
        max_chunk: the most timesteps of a row.
        ragged: whether rows of different length may share a run.
        coalesce: whether messages may be joined and cut.

    Returns:
        (places in `records`, row and timestep of each; each row's seat and timesteps), or None: no message is whole.
    """
    if not len(records):
        return None
    head = head_of(records)
    count = len(head)
    seat = head["seat"]
    order = np.argsort(seat, kind="stable")
    sorted_seat = seat[order]
    starts = np.flatnonzero(np.concatenate(([True], sorted_seat[1:] != sorted_seat[:-1])))
    sizes = np.diff(starts, append=count)
    along = np.arange(count) - np.repeat(starts, sizes)
    ends = head["last"][order].astype(bool)
    far = max_chunk + 1
    first_end = np.minimum.reduceat(np.where(ends & (along < max_chunk), along + 1, far), starts)
    if coalesce:
        last_end = np.maximum.reduceat(np.where(ends & (along < max_chunk), along + 1, 0), starts)
    else:
        last_end = np.where(first_end < far, first_end, 0)
    long = head["steps"][order[starts]] > max_chunk
    takes = np.where(last_end > 0, last_end, np.where(long, np.minimum(sizes, max_chunk), 0))
    arrival = order[starts]
    turn = np.argsort(arrival)
    turn = turn[takes[turn] > 0]
    if not len(turn):
        return None
    turn = turn[_fitting(takes[turn], ragged)][:max_batch]
    counts = takes[turn].astype(np.int64)
    row = np.repeat(np.arange(len(turn)), counts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = order[starts[turn][row] + place]
    return at, row, place, sorted_seat[starts[turn]].astype(np.int64), counts


def rest(records: Records, at: Ints, seats: Ints) -> Records:
    """What is left of `records` without `at`, in the order of its turn: the sessions that ran stand last.

    So a long message, or many that were pipelined, takes turns with what came after it.
    """
    seat = head_of(records)["seat"]
    ran = np.zeros(int(seat.max()) + 1, np.bool_)
    ran[seats] = True
    left = np.ones(len(records), np.bool_)
    left[at] = False
    places = np.flatnonzero(left)
    return records[places[np.argsort(ran[seat[places]], kind="stable")]]


def _fitting(takes: Ints, ragged: bool) -> np.ndarray:
    """Which may join the first: those of its length, or where lengths may differ, a window of one to two times."""
    lead = takes[0]
    if not ragged:
        return np.asarray(takes == lead)
    longer = (takes >= lead) & (takes <= 2 * lead)
    shorter = (takes <= lead) & (2 * takes >= lead)
    return np.asarray(longer if np.count_nonzero(longer) >= np.count_nonzero(shorter) else shorter)
