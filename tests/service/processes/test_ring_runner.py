"""The engine's side of the rings: front ends' sessions are answered as if each ran alone, on the real engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamcell.service.errors import SessionClosed
from streamcell.service.sessions.session import Output
from tests.support.rings import (
    MAX_BATCH,
    MAX_CHUNK,
    MAX_SESSIONS,
    Front,
    Rigs,
    Told,
    check,
    normal,
    one_session,
)

ACTS = st.sampled_from(["send", "send", "send", "send", "open", "end", "spoil", "fail", "serve", "serve"])
PLAN = st.lists(
    st.tuples(ACTS, st.integers(0, 7), st.integers(1, 11), st.sampled_from(list(Output))),
    min_size=5,
    max_size=50,
)


@dataclass
class One:
    """A session, what it sent, and how much of that may be answered."""

    front: Front
    entry: int
    sent: list[tuple[np.ndarray, Output]] = field(default_factory=list)
    fails: str = ""

    @property
    def told(self) -> Told:
        return self.front.told[self.entry]


@pytest.mark.parametrize("fixed", [False, True], ids=["ragged", "fixed shapes"])
@pytest.mark.parametrize("kind", ["lstm", "mlp", "cnn"])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@given(plan=PLAN, seed=st.integers(0, 2**31))
def test_sessions_of_two_front_ends_are_as_if_alone(
    rigs: Rigs,
    modules: dict[str, torch.nn.Module],
    kind: str,
    fixed: bool,
    plan: list[tuple[str, int, int, Output]],
    seed: int,
) -> None:
    rig, noise = rigs(kind, fixed_shapes=fixed), np.random.default_rng(seed)
    stateful = bool(rig.model.file.signature.states)
    rig.lose(*rig.fronts)  # what an example that failed has left
    fronts = [rig.front(), rig.front()]
    live: list[One] = []

    def finish(one: One) -> None:
        """All that it sent before it was spoiled has come back, and it ends."""
        rig.serve()
        one.front.read()
        check(one.told, one.sent, modules[kind], stateful=stateful)
        assert [error.reason for error in one.told.errors] == ([one.fails] if one.fails else [])
        if one.fails != "SESSION_CLOSED":
            assert len(one.told.replies) == len(one.sent)
        one.front.end(one.entry)
        rig.ring_sessions.gather()
        live.remove(one)

    for act, which, steps, mode in plan:
        if act == "open" or not live:
            if len(live) < MAX_SESSIONS:
                front = fronts[which % 2]
                live.append(One(front, front.open()))
            continue
        one = live[which % len(live)]
        x = noise.standard_normal((steps, 3)).astype(np.float32)
        if act == "send":
            one.front.send(one.entry, x, mode)
            if not one.fails:
                one.sent.append((x, mode))
        elif act == "spoil" and not one.fails:
            bad = x[:MAX_CHUNK]
            bad[noise.integers(len(bad)), noise.integers(3)] = [np.nan, np.inf, -np.inf][which % 3]
            one.front.send(one.entry, bad, mode)
            one.fails = "NON_FINITE_INPUT"
        elif act == "fail" and not one.fails:
            rig.ring_sessions.gather()  # it is known
            name = f"{one.front.process_number}-{one.entry}-{one.front.slot_versions[one.entry]}"
            rig.table.find(name).session.listener.fail(SessionClosed("closed", session_id=name))
            one.fails = "SESSION_CLOSED"
        elif act == "serve":
            rig.serve()
        elif act == "end":
            finish(one)
    while live:
        finish(live[0])
    rig.serve()
    assert rig.ring_sessions.capacity.live == 0
    assert len(rig.table) == 0
    rig.lose(*fronts)


def test_long_messages_are_cut_and_answered_as_one(rigs: Rigs, modules: dict[str, torch.nn.Module]) -> None:
    rig = rigs("lstm")
    front = rig.front()
    sent = [(normal(10, 3), mode) for mode in Output] + [(normal(2, 3), Output.ALL)]
    entries = [front.open() for _ in range(2)]
    for entry in entries:
        for x, mode in sent:
            front.send(entry, x, mode)
    runs = rig.serve()
    assert max(max(rows) for rows in runs) == MAX_CHUNK
    front.read()
    for entry in entries:
        assert len(front.told[entry].replies) == len(sent)
        check(front.told[entry], sent, modules["lstm"], stateful=True)


def test_long_messages_take_turns_with_what_came_after_them(rigs: Rigs) -> None:
    rig = rigs("lstm")
    front = rig.front()
    long, short = front.open(), front.open()
    front.send(long, normal(40, 3))
    front.send(short, normal(1, 3))
    assert rig.serve()[:3] == [[4], [1], [4]]


def test_a_message_that_comes_in_pieces_is_answered_once(
    rigs: Rigs, modules: dict[str, torch.nn.Module]
) -> None:
    rig = rigs("cnn")  # looks at a message as a whole
    front, entry = one_session(rig)
    x = normal(30, 3)
    records = front.records(entry, x)
    for part in np.split(records, [4, 11, 12]):
        front.read()
        assert not front.told[entry].replies
        front.writer.write(part)
        rig.serve()
    front.read()
    assert len(front.told[entry].replies) == 1
    check(front.told[entry], [(x, Output.ALL)], modules["cnn"], stateful=False)


def test_a_lost_front_end_gives_its_entries_back_and_the_others_go_on(
    rigs: Rigs, modules: dict[str, torch.nn.Module]
) -> None:
    rig = rigs("lstm")
    lost, kept = rig.front(), rig.front()
    x = normal(2, 3)
    mine = kept.open()
    theirs = [lost.open() for _ in range(MAX_SESSIONS - 1)]
    for entry in theirs:
        lost.send(entry, x)
    rig.serve()
    kept.send(mine, x)
    for entry in theirs:  # some of it has come, some has not, when it dies
        lost.send(entry, x)
    rig.ring_sessions.gather()
    lost.send(theirs[0], x)
    assert rig.ring_sessions.capacity.live == MAX_SESSIONS
    ended = rig.model.metrics.ended["frontend_lost"]
    rig.lose(lost)
    assert rig.ring_sessions.capacity.live == len(rig.table) == 1
    assert rig.model.metrics.ended["frontend_lost"] - ended == len(theirs)
    assert not rig.ring_sessions.queued[theirs].any()
    assert rig.serve() == [[2]]
    kept.read()
    check(kept.told[mine], [(x, Output.ALL)], modules["lstm"], stateful=True)
    again = [kept.open() for _ in range(MAX_SESSIONS - 1)]
    assert set(again) == set(theirs)
    for entry in again:
        kept.send(entry, x)
    rig.serve()
    kept.read()
    for entry in (mine, *again):
        assert len(kept.told[entry].replies) == 1
        check(kept.told[entry], [(x, Output.ALL)], modules["lstm"], stateful=True)


def test_the_engine_s_own_thread_serves_rings_and_notes_a_lost_front_end(
    rigs: Rigs, modules: dict[str, torch.nn.Module]
) -> None:
    rig = rigs("lstm", own_thread=True)
    fronts = [rig.front(), rig.front()]
    sent = {(front, front.open()): [(normal(3, 3), Output.ALL)] * 5 for front in fronts}
    for (front, entry), messages in sent.items():
        for x, mode in messages:
            front.send(entry, x, mode)
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and any(len(f.told[s].replies) < 5 for f, s in sent):
        for front in fronts:
            front.read()
        time.sleep(0.001)
    for (front, entry), messages in sent.items():
        assert len(front.told[entry].replies) == 5
        check(front.told[entry], messages, modules["lstm"], stateful=True)
    for front in fronts:
        rig.ring_sessions.lose(front.process_number)
        rig.fronts.remove(front)
    while time.monotonic() < deadline_s and rig.ring_sessions.capacity.live:
        time.sleep(0.001)
    assert rig.ring_sessions.capacity.live == len(rig.table) == 0


@pytest.mark.parametrize("steps", [1, 3])
def test_no_line_of_python_runs_a_session(
    rigs: Rigs, steps: int, counted: Callable[[Callable[[], object]], Counter[str]]
) -> None:
    """From the ring and back, 256 sessions take the calls that 16 take; no fewer take more."""
    rig = rigs("lstm", max_sessions=256, max_batch=256)
    front = rig.front()
    entries = [front.open() for _ in range(256)]

    def round_of(count: int) -> Counter[str]:
        for entry in entries[:count]:
            front.send(entry, normal(steps, 3), Output.LAST)
        metrics = rig.model.metrics
        for each in (metrics.step_latency_s, metrics.queue_wait_s, metrics.compute_s, metrics.batch_rows):
            each.totals()  # counts what it has kept: else one of the rounds does
        calls = counted(rig.serve)
        front.read()
        return calls

    assert rig.serve() == []
    for count in (4, 16, 256):
        round_of(count)  # what is done once is done now
    few, some, many = (round_of(count) for count in (4, 16, 256))
    assert some["RingRunner.run"] == many["RingRunner.run"] == 1
    assert some == many
    assert not {name: count for name, count in (few - many).items() if "C:" not in name}
    assert all(len(front.told[entry].replies) >= 2 for entry in entries)


def test_nothing_of_an_earlier_run_is_in_the_buffers_of_a_later_one(rigs: Rigs) -> None:
    """Behind each row's last step there are zeros, whatever ran before."""
    rig = rigs("lstm")
    front = rig.front()
    entries = [front.open() for _ in range(MAX_BATCH)]
    for number, lengths in enumerate(([4, 4, 4, 4], [2, 3, 4, 2], [4, 3, 2, 3], [1, 2, 1, 2])):
        mark = np.float32(number + 1)
        for entry, length in zip(entries, lengths, strict=True):
            front.send(entry, np.full((length, 3), mark, np.float32))
        rig.ring_sessions.gather()
        batch = rig.ring_sessions.form()
        assert batch is not None
        rows = rig.rings.fill(batch).values[0]
        for row, length in zip(rows, batch.counts.tolist(), strict=False):
            assert (row[:length] == mark).all()
            assert (row[length:] == 0).all()
        rig.rings.run(batch)
        rig.serve()
        front.read()
