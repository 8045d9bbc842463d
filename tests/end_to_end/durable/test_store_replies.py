"""When a reply leaves, and when its client hears that the store has it: two servers of this process, a real Valkey."""

from __future__ import annotations

import pytest

from streamcell.proto import pb
from streamcell.service.protocols.native import stored_sessions
from streamcell.service.protocols.native.stored_session import StoredSession
from tests.support.resumable import Owner, reason_of, step, sums
from tests.support.stored import Gate, Reading, Start, has_applied, mutant, opened, stored
from tests.support.waiting import waited

# store-sync


def told_early(self: StoredSession, data: bytes, last: bool) -> bytes:
    return data


@pytest.mark.parametrize("broken", [False, pytest.param(True, marks=mutant)])
def test_a_reply_at_store_sync_is_told_when_the_store_has_it(
    start: Start, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken:
        monkeypatch.setattr(StoredSession, "_hold_or_tell", told_early)
    server, owner = start(), Owner()
    gate, raw = Gate(server), opened(server, owner)
    with gate.closed():
        raw.send(step(1), step(2))
        assert has_applied(server, owner, 2)
        # What the engine has done later is answered, so these would have been, too.
        other = opened(server, Owner(), durability=pb.DURABILITY_NONE)
        other.send(step(1))
        other.reply()
        assert waited(lambda: not raw.came.empty()) if broken else raw.came.empty()
    first, second = raw.reply(), raw.reply()
    assert (sums(first), sums(second)) == ([1], [3])
    assert broken or second.durable == 2


@pytest.mark.parametrize("broken", [False, pytest.param(True, marks=mutant)])
def test_a_resume_at_store_sync_tells_nothing_that_the_store_does_not_have(
    start: Start, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken:
        monkeypatch.setattr(StoredSession, "_may_answer", lambda self: True)
    server, owner = start(), Owner()
    gate, raw = Gate(server), opened(server, owner)
    with gate.closed():
        raw.send(step(1))
        assert has_applied(server, owner, 1)
        raw.cut()
        again = Reading(server, owner.resume(0))
        # It is answered, or waits for the store.
        assert waited(lambda: not again.came.empty() or bool(stored(server, owner)._settled_s))
        assert again.came.empty() is not broken
    about = again.opened()
    assert (about.applied, about.durable) == (1, 0 if broken else 1)
    assert sums(again.outputs()) == [1]


def test_a_client_at_store_sync_is_told_if_the_store_does_not_answer_and_its_session_is_kept(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_sessions, "PATIENCE_S", 0.0)
    server, owner = start(), Owner()
    gate, raw = Gate(server), opened(server, owner)
    with gate.closed():
        raw.send(step(1))
        reason, facts, text = reason_of(raw.end())
        assert (reason, facts["session_id"]) == ("STORE_UNAVAILABLE", owner.id)
        assert "resume it" in text
        again = Reading(server, owner.resume(0))
        assert reason_of(again.end())[0] == "STORE_UNAVAILABLE"
        monkeypatch.undo()
        again = Reading(server, owner.resume(0))
        assert waited(lambda: stored(server, owner)._attempt == 3)
    assert again.opened().applied == 1
    assert sums(again.outputs()) == [1]
    again.send(step(2))
    assert sums(again.outputs()) == [3]


# store-async


@pytest.mark.parametrize("broken", [False, pytest.param(True, marks=mutant)])
def test_a_client_that_sends_nothing_more_learns_how_far_the_store_is(
    start: Start, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken:
        monkeypatch.setattr(StoredSession, "_reply_is_due", property(lambda self: True))
    server, owner = start("store-async"), Owner()
    gate, raw = Gate(server), opened(server, owner)
    with gate.closed():
        raw.send(step(1), step(2))
        first, second = raw.reply(), raw.reply()
        assert (sums(first), sums(second)) == ([1], [3])
        assert [each.HasField("durable") for each in (first, second)] == [False, False]
    assert waited(lambda: stored(server, owner)._durable == (2, 0))
    if broken:
        assert raw.came.empty()
    else:
        alone = raw.reply()
        assert alone == pb.StreamResponse(durable=2)
    raw.send(step(3))
    third = raw.reply()
    assert sums(third) == [6]
    assert third.HasField("durable") is broken


def test_replies_wait_while_another_replica_may_have_the_session(start: Start) -> None:
    server, owner = start("store-async"), Owner()
    store = server.host.store
    assert store is not None
    gate, raw = Gate(server), opened(server, owner)
    may_tell, store.may_tell = store.may_tell, lambda: False
    with gate.closed():
        raw.send(step(1))
        assert has_applied(server, owner, 1)
        other = opened(server, Owner(), durability=pb.DURABILITY_NONE)
        other.send(step(1))
        other.reply()  # and the one before it is not there
        assert raw.came.empty()
        store.may_tell = may_tell  # the lease was renewed, though nothing was written
        assert sums(raw.outputs()) == [1]
