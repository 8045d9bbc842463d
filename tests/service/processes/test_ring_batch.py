"""What of the rings runs next: the batcher's rules, whatever comes from whom in which pieces; nothing runs twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcell.service.processes.engine.ring_batch import RingBatch, choose, one_step_each, rest
from streamcell.service.processes.engine.ring_sessions import RingSessions
from streamcell.service.processes.ring import Records
from streamcell.service.processes.ring_records import FIELDS, HEADER, STEP, head_of

RECORD_BYTES = HEADER.size + 8


def records_of(entry: int, steps: int, first_number: int) -> Records:
    """A message of `steps` timesteps, numbered in the payload."""
    records = np.zeros((steps, RECORD_BYTES), np.uint8)
    fields = np.ndarray(steps, FIELDS, records, strides=(RECORD_BYTES,))
    fields["kind"], fields["entry"], fields["steps"] = STEP, entry, steps
    fields["first"][0] = fields["last"][-1] = 1
    records[:, HEADER.size :] = (
        np.arange(first_number, first_number + steps, dtype=np.int64).view(np.uint8).reshape(-1, 8)
    )
    return records


def numbers(records: Records) -> list[int]:
    found: list[int] = np.ascontiguousarray(records[:, HEADER.size :]).view(np.int64)[:, 0].tolist()
    return found


@dataclass(frozen=True)
class Rules:
    """How the model runs."""

    max_batch: int
    max_chunk: int
    ragged: bool
    coalesce: bool


def expected(pending: Records, rules: Rules) -> list[tuple[int, int]] | None:
    """The rules in plain Python: (entry, timesteps) of each row in order."""
    waiting: dict[int, list[tuple[bool, int]]] = defaultdict(list)
    for record in head_of(pending):
        waiting[int(record["entry"])].append((bool(record["last"]), int(record["steps"])))
    able = [(entry, take) for entry, steps in waiting.items() if (take := chunk(steps, rules))]
    if not able:
        return None
    lead = able[0][1]
    if not rules.ragged:
        joined = [each for each in able if each[1] == lead]
    else:
        longer = [each for each in able if lead <= each[1] <= 2 * lead]
        shorter = [each for each in able if lead <= 2 * each[1] <= 2 * lead]
        joined = longer if len(longer) >= len(shorter) else shorter
    return joined[: rules.max_batch]


def chunk(steps: list[tuple[bool, int]], rules: Rules) -> int:
    """How many timesteps a session runs next, of which (ends its message, timesteps of that) are there."""
    whole = 0
    for at, (last, _) in enumerate(steps[: rules.max_chunk], 1):
        if last:
            whole = at
            if not rules.coalesce:
                break
    if whole or steps[0][1] <= rules.max_chunk:
        return whole
    return min(len(steps), rules.max_chunk)


@dataclass
class Line:
    """A session: its messages' lengths, and records that have not come yet."""

    entry: int
    lengths: list[int]
    to_come: list[Records]
    numbers: list[int]
    ran: list[int] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)
    turns_before: int | None = None  # others that may run before it does, once it can


class Play:
    """Sessions whose messages come in pieces and run in batches."""

    def __init__(self, lengths: list[list[int]], rules: Rules) -> None:
        self.rules = rules
        self.pending = np.zeros((0, RECORD_BYTES), np.uint8)
        self.lines = {}
        number = 0
        for place, each in enumerate(lengths):
            entry = 7 * place + 3
            records = [np.zeros((0, RECORD_BYTES), np.uint8)]
            for steps in each:
                records.append(records_of(entry, steps, number))
                number += steps
            every = np.concatenate(records)
            self.lines[entry] = Line(entry, each, list(every[:, None]), numbers(every))

    def come(self, entry: int, count: int) -> None:
        line = self.lines[entry]
        came, line.to_come = line.to_come[:count], line.to_come[count:]
        self.pending = np.concatenate((self.pending, *came))

    def step(self) -> bool:
        """Choose and check; False where nothing could run."""
        rules = self.rules
        wanted = expected(self.pending, rules)
        chosen = choose(
            self.pending,
            max_batch=rules.max_batch,
            max_chunk=rules.max_chunk,
            ragged=rules.ragged,
            coalesce=rules.coalesce,
        )
        assert (chosen is None) == (wanted is None)
        if chosen is None or wanted is None:
            return False
        at, row, place, entries, counts = chosen
        assert [each.dtype for each in chosen] == [np.int64] * 5
        assert list(zip(entries.tolist(), counts.tolist(), strict=True)) == wanted
        assert len(at) == len(row) == len(place) == counts.sum()
        assert row.tolist() == [r for r, count in enumerate(counts) for _ in range(count)]
        assert place.tolist() == [p for count in counts for p in range(count)]
        assert len(entries) * counts.max() < 2 * counts.sum()  # less than half is padding
        taken = self.pending[at]
        assert (head_of(taken)["entry"] == entries[row]).all()
        for entry, count, end in zip(
            entries.tolist(), counts.tolist(), np.cumsum(counts).tolist(), strict=True
        ):
            self.lines[entry].ran += numbers(taken[end - count : end])
            self.lines[entry].pieces.append(count)
        self.turns(set(entries.tolist()))
        self.short_cut(at, entries)
        before = sorted(numbers(self.pending))
        self.pending = rest(self.pending, at, entries)
        assert sorted(numbers(taken) + numbers(self.pending)) == before
        return True

    def short_cut(self, at: np.ndarray, entries: np.ndarray) -> None:
        """Where all is single steps of sessions of their own, what came first is what runs."""
        head = head_of(self.pending)
        alike = bool((head["steps"] == 1).all()) and len(np.unique(head["entry"])) == len(head)
        assert one_step_each(head, np.zeros(64, np.int64)) == alike
        if alike:
            assert at.tolist() == list(range(min(len(head), self.rules.max_batch)))
            assert entries.tolist() == head["entry"][: self.rules.max_batch].tolist()

    def turns(self, ran: set[int]) -> None:
        """Who can run waits for one run, at most, of each session that stands before it."""
        waiting: dict[int, list[tuple[bool, int]]] = defaultdict(list)
        for record in head_of(self.pending):
            waiting[int(record["entry"])].append((bool(record["last"]), int(record["steps"])))
        for stands, (entry, steps) in enumerate(waiting.items()):
            line = self.lines[entry]
            if entry in ran or not chunk(steps, self.rules):
                line.turns_before = None
                continue
            line.turns_before = stands if line.turns_before is None else line.turns_before
            line.turns_before -= 1
            assert line.turns_before >= 0, f"{entry} was passed over"

    def check(self) -> None:
        """All has run, in order, whole where it fits."""
        for line in self.lines.values():
            assert line.ran == line.numbers
            ends = np.cumsum(line.pieces).tolist()
            begin = 0
            for steps in line.lengths:
                cuts = [end for end in ends if begin < end < begin + steps]
                if steps <= self.rules.max_chunk:
                    assert not cuts, f"a message of {steps} was cut"
                begin += steps
            assert all(piece <= self.rules.max_chunk for piece in line.pieces)


RULES = st.builds(Rules, st.integers(1, 5), st.integers(1, 6), st.booleans(), st.booleans())


@settings(max_examples=400, deadline=None, print_blob=True)
@given(
    lengths=st.lists(
        st.lists(st.integers(1, 20) | st.just(1), min_size=1, max_size=6), min_size=1, max_size=6
    ),
    rules=RULES,
    arrivals=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12), st.integers(0, 2)), max_size=80),
)
def test_whatever_comes_in_which_pieces_runs_once_in_order_by_the_rules(
    lengths: list[list[int]], rules: Rules, arrivals: list[tuple[int, int, int]]
) -> None:
    play = Play(lengths, rules)
    entries = list(play.lines)
    for which, count, runs in arrivals:
        play.come(entries[which % len(entries)], count)
        for _ in range(runs):
            play.step()
    for entry in entries:
        play.come(entry, 1000)
    while play.step():
        pass
    assert not len(play.pending)
    play.check()


def run_alone(arrived: list[int], rules: Rules, *lengths: int) -> list[int]:
    """The pieces in which one session's messages run, of which so many records come each time."""
    play = Play([list(lengths)], rules)
    (entry,) = play.lines
    for count in arrived:
        play.come(entry, count)
        while play.step():
            pass
    play.check()
    return play.lines[entry].pieces


def test_a_message_that_fits_waits_until_it_is_all_there() -> None:
    rules = Rules(4, 8, ragged=True, coalesce=True)
    assert run_alone([3, 2, 1, 6], rules, 6, 6) == [6, 6]


def test_a_longer_one_runs_as_it_comes_and_its_tail_takes_what_follows_along() -> None:
    rules = Rules(4, 4, ragged=True, coalesce=True)
    assert run_alone([13], rules, 10, 2, 1) == [4, 4, 4, 1]
    assert run_alone([6, 1, 1, 3, 2], rules, 10, 3) == [4, 2, 1, 1, 2, 3]


def test_messages_of_a_stateless_model_run_one_by_one() -> None:
    rules = Rules(4, 8, ragged=True, coalesce=False)
    assert run_alone([4, 8], rules, 3, 5, 4) == [3, 5, 4]


def test_long_messages_take_turns_with_what_came_after_them() -> None:
    play = Play([[40], [1], [40], [1]], Rules(4, 4, ragged=True, coalesce=True))
    for entry in play.lines:
        play.come(entry, 40)
    runs = 0
    while play.step():
        runs += 1
        if runs == 2:
            assert [line.pieces for line in play.lines.values()] == [[4], [1], [4], [1]]
    assert runs == 11
    play.check()


def test_no_line_of_python_runs_a_timestep(
    counted: Callable[[Callable[[], object]], Counter[str]],
) -> None:
    """As many calls, of numpy too, for 1,024 timesteps as for four, of as many sessions or of one. Half of them run."""

    def choosing(pending: Records) -> Callable[[], object]:
        half = len(pending) // 2

        def run() -> RingBatch:
            chosen = choose(pending, max_batch=half, max_chunk=half, ragged=True, coalesce=True)
            assert chosen is not None
            at, row, place, entries, counts = chosen
            assert len(at) == len(rest(pending, at, entries)) == half
            taken = pending[at]
            batch = RingBatch(cast(RingSessions, None), taken, head_of(taken), row, place, entries, counts)
            assert batch.steps == counts[0]
            return batch.keep(batch.row == 0)

        return run

    def sessions(count: int) -> Records:
        return np.concatenate([records_of(entry, 1, entry) for entry in range(count)])

    runs = [choosing(sessions(count)) for count in (4, 1024)]
    runs += [choosing(records_of(5, count, 0)) for count in (4, 1024)]
    for run in runs:
        run()  # what is done once is done now
    counts = [counted(run) for run in runs]
    assert counts[0].total() > 20
    assert counts[0] == counts[1] == counts[2] == counts[3]
