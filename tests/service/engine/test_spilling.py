"""Sessions that share fewer rows than they are: to the bit, outputs and states are as if each had a row of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.benchmarks.parity import compare, engine
from streamcell.service.engine import spilling as module
from streamcell.service.engine.cuda_copies import CudaCopies
from streamcell.service.engine.device import Device
from streamcell.service.engine.spilling import Ints, Mover, Spilling
from streamcell.service.errors import EngineFailed
from streamcell.service.repository.model_file import open_model

from .test_copies import Runtime

ROWS, SESSIONS = 8, 160
DEVICES = {"cpu": Device(), "apart": Device(apart=True)}


class Host:
    """A pool of one number a row, whose copies are noted; `fails` are places that cannot be brought back."""

    def __init__(self) -> None:
        self.pool, self.kept = np.zeros(99, np.int64), np.zeros(99, np.int64)
        self.left: list[int] = []
        self.came: list[int] = []
        self.fails: set[int] = set()

    def out(self, rows: Ints, places: Ints) -> None:
        self.left += places.tolist()
        self.kept[places] = self.pool[rows]

    def back(self, places: Ints, rows: Ints) -> None:
        if self.fails & set(places.tolist()):
            raise MemoryError
        self.came += places.tolist()
        self.pool[rows] = self.kept[places]

    def read(self, place: int) -> tuple[np.ndarray, ...]:
        return (self.kept[place],)

    def close(self) -> None: ...


class Counts:
    """Sessions that count their own steps, in runs over a `Spilling`; slots begin at 3."""

    def __init__(self, rows: int = 4, slots: int = 20, kind: type[Spilling] = Spilling) -> None:
        self.host = Host()
        self.spilling = kind(self.host, first=3, rows=rows, slots=slots)
        self.expected: Counter[int] = Counter()
        self.told: list[tuple[int, int]] = []
        self.spilling.told = lambda spilled, returned, took_s: self.told.append((spilled, returned))

    def run(self, *sessions: int) -> None:
        """A step of each session, numbered from 0; those that step for the first time read the initial state."""
        write = np.array(sessions, np.int64) + 3
        read = np.where([self.expected[each] > 0 for each in sessions], write, 0)
        self.spilling.place(read, write)
        self.host.pool[write] = self.host.pool[read] + 1
        self.expected.update(sessions)
        assert self.host.pool[write].tolist() == [self.expected[each] for each in sessions]


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("kind", ["lstm", "tcn"])
def test_twenty_times_more_sessions_than_rows_differ_in_no_bit(
    models_dir: Path, kind: str, device: Device
) -> None:
    file = open_model(models_dir / f"{kind}.onnx", kind)
    # Measured, the faster cell may be another one in each: it differs in bits.
    few = engine(file, device, sessions=SESSIONS, slots=ROWS, cell="operator")
    many = engine(file, device, sessions=SESSIONS, max_batch=ROWS, cell="operator")
    assert (few.max_batch, few.pool.rows) == (ROWS, few.pool.first_slot + ROWS)
    found = compare(many, few, sessions=SESSIONS, runs=300)
    assert found.steps > 2000
    assert (found.output_error, found.state_error) == (0, 0)
    assert few.pool.spilling is not None
    assert few.pool.spilling.spilled > SESSIONS - 2 * ROWS
    few.close()


class Mutant:
    def __init__(self, mover: Mover) -> None:
        self.mover = mover
        self.out, self.back, self.read, self.close = mover.out, mover.back, mover.read, mover.close


class Late(Mutant):
    """A row is another session's before it has been copied."""

    def __init__(self, mover: Mover) -> None:
        super().__init__(mover)
        self.due: list[tuple[Ints, Ints]] = []
        self.out = lambda rows, places: self.due.append((rows, places))
        self.back = self.back_first

    def back_first(self, places: Ints, rows: Ints) -> None:
        self.mover.back(places, rows)
        for rows_due, places_due in self.due:
            self.mover.out(rows_due, places_due)
        self.due.clear()


class Dropped(Mutant):
    """States that leave the pool are gone."""

    def __init__(self, mover: Mover) -> None:
        super().__init__(mover)
        self.out = lambda rows, places: None


class Swapped(Mutant):
    """Sessions that leave together get each other's states."""

    def __init__(self, mover: Mover) -> None:
        super().__init__(mover)
        self.out = lambda rows, places: mover.out(rows[::-1], places)


@pytest.mark.parametrize("mutant", [Late, Dropped, Swapped])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_the_comparison_sees_a_state_that_is_not_kept(models_dir: Path, device: Device, mutant: Any) -> None:
    file = open_model(models_dir / "lstm.onnx", "lstm")
    few = engine(file, device, sessions=SESSIONS, slots=ROWS)
    many = engine(file, device, sessions=SESSIONS, max_batch=ROWS)
    assert few.pool.spilling is not None
    few.pool.spilling._mover = mutant(few.pool.spilling._mover)
    assert compare(many, few, sessions=SESSIONS, runs=60).output_error > 0


def test_what_differs_only_in_who_leaves_is_not_seen_there_but_in_counts() -> None:
    """Of 4 rows 3 sessions use theirs in each run, and 12 others take turns in the last one."""

    def returns(kind: type[Spilling]) -> list[int]:
        counts = Counts(kind=kind)
        for round_ in range(48):
            counts.run(0, 1, 2, 3 + round_ % 12)
        return counts.host.came

    assert returns(Spilling) == [3 + round_ % 12 for round_ in range(12, 48)]

    class Arbitrary(Spilling):
        def _oldest(self, rows: Ints, count: int) -> Ints:
            return rows[:count]

    class Newest(Spilling):
        def _oldest(self, rows: Ints, count: int) -> Ints:
            return rows[np.argsort(-self._last_run[rows])[:count]]

    # Within a run those that are in it stay: what tells is who leaves between two runs of the others.
    def leave(kind: type[Spilling]) -> list[int]:
        counts = Counts(kind=kind)
        for session in (0, 1, 2, 3, 1, 0, 4, 5, 3, 6):
            counts.run(session)
        return counts.host.left

    assert leave(Spilling) == [2, 3, 1, 0]
    assert leave(Arbitrary) != [2, 3, 1, 0]
    assert leave(Newest) != [2, 3, 1, 0]


def test_what_ended_sessions_have_left_is_not_copied() -> None:
    counts = Counts(rows=4, slots=20)
    alive = np.ones(20, np.int64)
    counts.spilling.versions = lambda slots: alive[slots - 3]
    for session in range(6):
        counts.run(session)
    assert (counts.host.left, counts.spilling.spilled) == ([0, 1], 2)
    alive[[0, 3, 4]] = 0  # one that is spilled, and two in the pool
    assert counts.spilling.spilled == 1
    for session in (6, 7):
        counts.run(session)
        assert counts.told[-1] == (0, 0)
    assert counts.host.left == [0, 1]
    # Another session at the slot of the one that was spilled begins at the initial state.
    del counts.expected[0]
    alive[0] = 2
    counts.run(0)
    assert counts.host.came == []
    assert counts.spilling.spilled == 2


def test_a_run_that_needs_more_rows_than_there_are_changes_nothing() -> None:
    counts = Counts(rows=4)
    counts.run(0, 1, 2, 3)
    counts.run(4, 5)
    read, write = np.array([3, 4, 5, 6, 7]), np.array([3, 4, 5, 6, 7])
    with pytest.raises(EngineFailed, match="--slots"):
        counts.spilling.place(read, write)
    assert read.tolist() == write.tolist() == [3, 4, 5, 6, 7]
    counts.run(0, 1, 2, 3)
    counts.run(5, 4, 3, 2)


def test_a_session_that_cannot_be_brought_back_may_be_tried_again_and_others_are_not_touched() -> None:
    counts = Counts(rows=4)
    counts.run(0, 1, 2, 3)
    counts.run(4, 5, 6, 7)
    counts.host.fails = {1}
    for _ in range(2):
        with pytest.raises(EngineFailed, match="brought back"):
            counts.run(0, 1, 2)
    assert counts.told[-2:] == [(3, 0), (0, 0)]  # rows are free now
    counts.run(0, 2)
    counts.run(4, 5, 6, 7)
    assert counts.told[-2:] == [(0, 2), (2, 3)]
    counts.host.fails = set()
    counts.run(0, 1, 2, 3)


def test_a_state_that_is_nowhere_is_not_made_up() -> None:
    counts = Counts()
    counts.expected[5] = 1
    with pytest.raises(EngineFailed, match="lost"):
        counts.run(5)


def test_rows_of_a_card_are_waited_for_together(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    monkeypatch.setattr(Device, "copies", lambda self: CudaCopies(runtime, 0))
    monkeypatch.setattr(module, "_AT_ONCE", 4)
    file = open_model(models_dir / "lstm.onnx", "lstm")
    few = engine(file, Device(apart=True), sessions=40, slots=16)
    staged = few.stage(16, 1)
    first = few.pool.first_slot

    def place(sessions: range, *, fresh: bool) -> Counter[str]:
        few.pad(staged, 16)
        staged.write[:, 0] = first + np.array(sessions)
        staged.read[:] = 0 if fresh else staged.write[:, 0]
        runtime.calls.clear()
        few.place(staged, 16)
        return runtime.calls

    place(range(16), fresh=True)
    states = len(few.signature.states)
    out = place(range(16, 32), fresh=True)
    assert (out["cudaMemcpyAsync"], out["cudaStreamSynchronize"]) == (16 * states, 4)
    back = place(range(16), fresh=False)  # the others leave for it
    assert (back["cudaMemcpyAsync"], back["cudaStreamSynchronize"]) == (32 * states, 8)
    few.close()
    assert not runtime.memory
