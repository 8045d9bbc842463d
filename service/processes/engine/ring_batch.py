"""Chooses the timesteps that run next, with numpy: the number of operations does not depend on that of timesteps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from streamcell.service.errors import ServiceError
from streamcell.service.processes.ring import Records
from streamcell.service.processes.ring_records import Head, Layout, head_of
from streamcell.service.sessions.capacity import Ints
from streamcell.service.sessions.session import Session

Truths: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


class SessionArrays(Protocol):
    """A model's sessions of front ends as arrays by entry, with a way to reply: `RingSessions` is one."""

    inputs: Layout
    outputs: Layout
    applied: Ints
    queued: Ints
    fresh: np.ndarray
    used_s: np.ndarray
    spent: np.ndarray

    def answer(self, records: Records) -> None:
        """Send replies."""

    def fail(self, entry: int, slot_version: int, error: ServiceError) -> None:
        """End a session."""


@dataclass(slots=True)
class RingBatch:
    """Timesteps that run together, sorted by row and time.

    Attributes:
        source: the sessions that they belong to.
        records: uint8[n, record_bytes]; `head`: their headers.
        row: int64[n], each record's row; `place`: int64[n], its timestep in that row.
        entries: int64[rows], each row's session.
        counts: int64[rows], each row's timesteps.
        taken_s: when the batch was formed, by `time.perf_counter`.
    """

    source: SessionArrays
    records: Records
    head: Head
    row: Ints
    place: Ints
    entries: Ints
    counts: Ints
    taken_s: float = field(default_factory=time.perf_counter)

    @property
    def sessions(self) -> Iterator[Session]:
        """Empty: the sessions are not the batcher's."""
        return iter(())

    @property
    def steps(self) -> int:
        """Timesteps of the longest row."""
        return int(self.counts.max())

    def keep(self, kept: np.ndarray) -> RingBatch:
        """The batch of the records for which bool[n] `kept` holds: of each row none, or a prefix."""
        rows, row = np.unique(self.row[kept], return_inverse=True)
        counts = np.bincount(row, minlength=len(rows))
        return RingBatch(
            self.source, self.records[kept], self.head[kept], row.astype(np.int64), self.place[kept],
            self.entries[rows], counts.astype(np.int64), self.taken_s,
        )  # fmt: skip


def one_step_each(head: Head, scratch: Ints) -> bool:
    """True if all records are whole messages of one timestep, each of another session. Most are; `choose` is slower.

    `scratch`, int64[entries], is written to.
    """
    if not (head["steps"] == 1).all():
        return False
    entry, places = head["entry"], np.arange(len(head))
    scratch[entry] = places
    return bool((scratch[entry] == places).all())


def choose(
    records: Records, *, max_batch: int, max_chunk: int, ragged: bool, coalesce: bool
) -> tuple[Ints, Ints, Ints, Ints, Ints] | None:
    """Choose the records that run next from `records`, which are in order of arrival.

    The rules are `batch.BatchQueue`'s: each session's whole messages up to `max_chunk` timesteps, or a part of a longer
    one. The first session leads; others join while less than half of the run is padding.

    Args:
        records: uint8[n, record_bytes], all of them timesteps.
        max_batch: maximum rows.
        max_chunk: maximum timesteps in a row.
        ragged: whether rows of different length may share a run.
        coalesce: whether messages may be joined and cut.

    Returns:
        (places in `records`, row and timestep of each; each row's entry and timesteps), or None if no message is whole.
    """
    if not len(records):
        return None
    head = head_of(records)
    count = len(head)
    entry = head["entry"]
    order = np.argsort(entry, kind="stable")
    sorted_entry = entry[order]
    starts = np.flatnonzero(np.concatenate(([True], sorted_entry[1:] != sorted_entry[:-1])))
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
    return at, row, place, sorted_entry[starts[turn]].astype(np.int64), counts


def rest(records: Records, at: Ints, entries: Ints) -> Records:
    """`records` without `at`; records of the sessions that ran stand last.

    So a session with a long message, or with many pipelined ones, takes turns with the others.
    """
    entry = head_of(records)["entry"]
    ran = np.zeros(int(entry.max()) + 1, np.bool_)
    ran[entries] = True
    left = np.ones(len(records), np.bool_)
    left[at] = False
    places = np.flatnonzero(left)
    return records[places[np.argsort(ran[entry[places]], kind="stable")]]


def _fitting(takes: Ints, ragged: bool) -> np.ndarray:
    """Which rows may join the first: those of its length or, if lengths may differ, a window of one to two times."""
    lead = takes[0]
    if not ragged:
        return np.asarray(takes == lead)
    longer = (takes >= lead) & (takes <= 2 * lead)
    shorter = (takes <= lead) & (2 * takes >= lead)
    return np.asarray(longer if np.count_nonzero(longer) >= np.count_nonzero(shorter) else shorter)
