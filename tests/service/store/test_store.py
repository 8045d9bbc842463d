"""Replicas and a real Valkey: who has a session, and what the store has of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import pytest

from streamcell.service.errors import SessionNotFound
from streamcell.service.sessions.resume_errors import SessionTakenOver
from streamcell.service.store import functions
from streamcell.service.store.errors import SessionElsewhere
from tests.support.stores import Opened, new_id
from tests.support.valkey import ValkeyServer, valkey
from tests.support.waiting import waited

Replica = Callable[..., Opened]


@pytest.fixture(scope="module", params=["valkey", "redis"])
def shared(request: pytest.FixtureRequest, program: Callable[[str], str]) -> Iterator[ValkeyServer]:
    """The server of this module's tests: Valkey, and Redis 7."""
    with valkey(server=program("redis-server") if request.param == "redis" else None) as started:
        yield started


def test_a_session_is_created_written_and_claimed_again_where_it_is(
    replica: Replica, shared: ValkeyServer
) -> None:
    a, key = replica(), new_id()
    first = a.claim(key, 1, create=True)
    assert (first.created, first.held, first.number, first.image) == (True, False, 0, b"")
    session = a.open(key, 2)
    a.step(session)
    again = a.claim(key, 3)
    assert (again.created, again.held, again.fence, again.number) == (False, True, session.fence, 1)
    assert shared.record(key)["owner"].decode() == a.store.boot


def test_absent_another_token_and_another_tenant_are_the_same_error(replica: Replica) -> None:
    a, key = replica(), new_id()
    a.claim(key, create=True, tenant="t")
    answers = [
        a.ask(new_id(), 2),
        a.ask(key, 2, tenant="t", token_hash=b"x" * 32),
        a.ask(key, 2, tenant="u"),
        a.ask(key, 2, tenant="u", create=True),
    ]
    assert {type(each) for each in answers} == {SessionNotFound}
    assert len({str(each).partition("'")[0] for each in answers}) == 1
    assert a.claim(key, 2, tenant="t").created  # nothing was put yet


def test_a_late_opening_changes_nothing(replica: Replica, shared: ValkeyServer) -> None:
    a, b, key = replica("a"), replica("b"), new_id()
    a.open(key, 5, create=True)
    before = shared.record(key)
    assert isinstance(a.ask(key, 5), SessionTakenOver)
    assert isinstance(b.ask(key, 4), SessionTakenOver)
    assert shared.record(key) == before


def test_a_live_owner_is_named_with_its_address(replica: Replica) -> None:
    a, b, key = replica("east", advertise="east:8500"), replica("b", patience_s=0.3), new_id()
    a.open(key, create=True)
    answer = b.ask(key, 2)
    assert isinstance(answer, SessionElsewhere)
    assert answer.facts | {"replica": "east", "address": "east:8500"} == answer.facts


def test_the_owner_is_asked_and_gives_the_session_away_with_all_it_has(replica: Replica) -> None:
    a, b, key = replica("a"), replica("b"), new_id()
    session = a.open(key, create=True)
    session.number = 7  # not yet written
    a.store.on_release = lambda asked: a.store.release(session, lambda: None) if asked == key else None
    moved = b.claim(key, 2)
    assert (moved.number, moved.image, moved.held) == (7, b"state 7", False)
    assert moved.fence > session.fence
    session.number = 8
    a.store.changed(session, sync=True)  # of a session that it no longer has
    b.step(b_session := b.open(key, 3))
    assert b_session.number == 8


def test_a_session_that_is_given_away_is_told_first_what_the_store_has(replica: Replica) -> None:
    a = replica("a")
    session = a.open(new_id(), create=True)
    session.number = 7  # not yet written
    told: Queue[list[tuple[int, int]]] = Queue()
    a.store.release(session, lambda: told.put(list(session.told)))
    assert told.get(timeout=60) == [(7, 0)]


def test_a_session_that_has_ended_is_gone(replica: Replica, shared: ValkeyServer) -> None:
    a, key = replica(), new_id()
    session = a.open(key, create=True)
    a.step(session)
    session.ended = True
    a.store.delete(session)
    assert isinstance(a.ask(key, 2), SessionNotFound)
    assert shared.record(key) == {}


def test_a_server_that_stops_leaves_its_sessions_to_others_at_once(
    replica: Replica, shared: ValkeyServer
) -> None:
    a, b, key = replica("a"), replica("b"), new_id()
    session = a.open(key, create=True)
    session.number = 3
    a.store.changed(session, sync=False)
    a.store.stop()
    assert b.claim(key, 2).number == 3


def test_a_session_that_was_claimed_and_cannot_be_served_is_given_away(replica: Replica) -> None:
    a, b, key = replica("a"), replica("b"), new_id()
    a.claim(key, create=True)
    a.store.free(key)
    assert b.claim(key, 2).created


def test_what_a_replica_owns_without_knowing_is_given_away_when_it_is_asked_for(
    replica: Replica, shared: ValkeyServer
) -> None:
    a, b, key = replica("a"), replica("b"), new_id()
    b.claim(key, create=True)
    shared.call("HSET", "sc:s:" + key.hex(), "owner", a.store.boot)  # as a claim whose answer was lost
    assert b.claim(key, 2).created


@pytest.mark.parametrize("field", ["token", "owner", "fence", "at", "attempt"])
def test_what_another_program_wrote_under_a_sessions_name_is_told(
    replica: Replica, shared: ValkeyServer, field: str
) -> None:
    a, key = replica(), new_id()
    a.claim(key, create=True)
    shared.call("HDEL", "sc:s:" + key.hex(), field)
    answer: Any = a.ask(key, 2)
    assert answer.reason == "STORED_STATE_INVALID"
    assert waited(lambda: a.store.figures.errors()["failed"] == 0)


def test_a_changed_text_of_the_functions_has_another_version() -> None:
    """Replicas of two releases share a store during an update, and each calls its own functions."""
    assert (functions.VERSION, hashlib.sha256(functions.TEXT.encode()).hexdigest()[:16]) == (
        1,
        "cfc591c3402cf8e2",
    )
    assert set(re.findall(r"'streamcell_(\d+)_", functions.TEXT)) == {str(functions.VERSION)}
    assert functions.TEXT.startswith(f"#!lua name=streamcell_{functions.VERSION}\n")
