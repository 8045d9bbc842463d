"""Which replica an opening finds the session at: two servers of this process, a real Valkey."""

from __future__ import annotations

from typing import Any

import pytest

from streamcell.proto import pb
from streamcell.service.protocols.native.stored_sessions import StoredSessions
from tests.support.resumable import Owner, reason_of, step, sums
from tests.support.stored import Gate, Reading, Start, ends_with_moved, mutant, opened, stored, take_away
from tests.support.valkey import ValkeyServer
from tests.support.waiting import waited


@pytest.mark.parametrize("broken", [False, pytest.param(True, marks=mutant)])
@pytest.mark.parametrize("level", ["store-async", "store-sync"])
def test_a_live_session_that_another_replica_has_had_is_not_resumed_from_memory(
    start: Start, shared: ValkeyServer, level: str, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner()
    a, b = start(level), start(level, "b")
    old = opened(a, owner)
    old.send(step(1))
    assert sums(old.outputs()) == [1]
    assert waited(lambda: stored(a, owner)._durable == (1, 0))
    old.cut()
    take_away(shared, owner)
    new = Reading(b, owner.resume(1))
    assert new.opened().applied == 1
    new.send(step(2))
    assert sums(new.outputs()) == [3]
    if broken:
        monkeypatch.setattr(StoredSessions, "claim_of", lambda *_: None)
    back = Reading(a, owner.resume(2))
    if broken:
        assert reason_of(back.end())[0] == "STATE_BEHIND"
        return
    assert back.opened().applied == 2
    ends_with_moved(new)
    back.send(step(4))
    assert sums(back.outputs()) == [7]


def test_an_opening_that_comes_late_changes_nothing_at_another_replica(start: Start) -> None:
    owner, a, b = Owner(), start("store-async"), start("store-async", "b")
    late = owner.opening()
    raw = opened(a, owner)
    raw.send(step(1))
    raw.reply()
    assert reason_of(Reading(b, late).end())[0] == "SESSION_TAKEN_OVER"
    raw.send(step(2))
    assert sums(raw.outputs()) == [3]


def test_an_opening_whose_call_ends_before_the_store_answers_leaves_the_session_to_the_next(
    start: Start, shared: ValkeyServer
) -> None:
    owner, a = Owner(), start("store-async")
    connection: Any = a.host.store._claims._connection  # type: ignore[union-attr]
    with Gate(connection).closed():
        early = Reading(a, owner.opening())
        assert waited(lambda: a.host.store._claims.under_way(owner.session))  # type: ignore[union-attr]
        early.cut()
        assert waited(lambda: not a.host.metrics.models or early.end() is not None)
        second = Reading(a, owner.opening(first=1), step(1))
    assert second.opened().applied == 0
    assert sums(second.outputs()) == [1]
    assert len(a.host.sessions) == 1


def test_a_session_that_ends_while_the_store_answers_is_not_taken_for_a_damaged_one(start: Start) -> None:
    owner, a = Owner(), start("store-async")
    opened(a, owner).cut()
    made = stored(a, owner)
    here = a.host.context.stored._here

    def ended(*given: Any) -> Any:
        made._end("closed")
        return here(*given)

    a.host.context.stored._here = ended
    assert Reading(a, owner.resume(0)).error()[0] == "SESSION_MOVED"
    a.host.context.stored._here = here
    assert Reading(a, owner.resume(0)).error()[0] == "SESSION_NOT_FOUND"


def test_messages_and_the_half_close_behind_an_opening_wait_until_the_store_has_answered(
    start: Start,
) -> None:
    owner, a = Owner(), start("store-async")
    connection: Any = a.host.store._claims._connection  # type: ignore[union-attr]
    with Gate(connection).closed():
        raw = Reading(a, owner.opening(first=1), step(1), step(2), pb.StreamRequest(received=0), None)
        assert waited(lambda: a.host.store._claims.under_way(owner.session))  # type: ignore[union-attr]
    assert raw.opened().applied == 0
    assert [sums(raw.outputs()), sums(raw.outputs())] == [[1], [3]]
    assert raw.end() is None


def test_a_client_that_lost_its_messages_with_the_machine_is_told_so(
    start: Start, shared: ValkeyServer
) -> None:
    owner, a, b = Owner(), start("store-async"), start("store-async", "b")
    gate, raw = Gate(a), opened(a, owner)
    raw.send(step(1))
    raw.outputs()
    assert waited(lambda: stored(a, owner)._durable == (1, 0))
    with gate.closed():
        raw.send(step(2))
        raw.outputs()
        take_away(shared, owner)
        reason, facts, _ = Reading(b, owner.resume(2)).error()
    assert (reason, facts["applied"], facts["held"]) == ("STATE_BEHIND", "1", "3")
    assert Reading(b, owner.resume(1)).opened().applied == 1


def test_a_moved_session_is_counted_where_it_is(start: Start) -> None:
    owner, a, b = Owner(), start("store-async"), start("store-async", "b")
    raw = opened(a, owner)
    there = Reading(b, owner.resume(0))
    there.opened()
    ends_with_moved(raw)
    for server, counts in ((a, [0, 0, 0]), (b, [1, 0, 0])):
        metrics, sessions = server.host.models.find("sum", "").metrics, server.host.sessions

        def right(metrics: Any = metrics, sessions: Any = sessions, counts: list[int] = counts) -> bool:
            opened = metrics.opened - sum(metrics.ended.values())
            return list(sessions.counts(metrics).values()) == counts and opened == sum(counts)

        assert waited(right)
    assert waited(lambda: a.host.models.find("sum", "").metrics.ended == {"moved": 1})
    assert waited(lambda: a.host.models.find("sum", "").batcher.live == 0)
