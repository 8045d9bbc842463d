"""A tenant's sessions are counted exactly, whoever takes and gives them."""

from __future__ import annotations

import threading

import pytest
from google.rpc import error_details_pb2, status_pb2

from streamcell.service.access.access_errors import NotPermitted, QuotaExceeded
from streamcell.service.access.grant import Grant, Members, Taken
from streamcell.service.access.policy import Terms
from streamcell.service.errors import as_status


def test_sessions_are_taken_all_or_none_and_the_refusal_says_when_to_come_again() -> None:
    grant = Grant("acme", lambda: Terms(max_sessions=3))
    grant.take_sessions(2)
    with pytest.raises(QuotaExceeded, match="may have 3 sessions and has 2") as raised:
        grant.take_sessions(2)
    code, _, trailing = as_status(raised.value)
    status = status_pb2.Status.FromString(trailing[0][1])  # type: ignore[arg-type]
    info, wait = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert [status.details[0].Unpack(info), status.details[1].Unpack(wait)] == [True, True]
    assert (code.name, info.reason, wait.retry_delay.ToMilliseconds()) == (
        "RESOURCE_EXHAUSTED",
        "QUOTA_EXCEEDED",
        1000,
    )
    grant.take_sessions(1)
    assert grant.sessions == 3


def test_terms_may_change_while_sessions_live() -> None:
    terms = [Terms(max_sessions=3)]
    grant = Grant("acme", lambda: terms[0])
    grant.take_sessions(3)
    terms[0] = Terms(max_sessions=1, calls=frozenset(("step",)), models=frozenset(("a",)))
    grant.give_sessions(1)
    with pytest.raises(QuotaExceeded):
        grant.take_sessions(1)
    grant.check("step")
    with pytest.raises(NotPermitted, match="'generate', only: step"):
        grant.check("generate")
    assert [grant.sees("a"), grant.sees("b")] == [True, False]


def test_new_sessions_are_refused_while_the_tenants_messages_wait_too_long() -> None:
    now_s = [100.0]
    grant = Grant("acme", lambda: Terms(max_queue_s=0.5), lambda: now_s[0])
    grant.waited(0.4)
    grant.take_sessions(1)
    grant.waited(0.75)
    with pytest.raises(QuotaExceeded, match=r"wait 0\.75 s") as raised:
        grant.take_sessions(1)
    assert raised.value.facts["quota"] == "max_queue_s"
    (wait,) = raised.value.more
    assert wait.retry_delay.ToMilliseconds() == 750  # type: ignore[attr-defined]
    now_s[0] += 1.0  # nothing of it has been in a batch since
    grant.take_sessions(1)
    assert grant.sessions == 2


def test_members_of_frames_count_from_the_asking_to_the_end() -> None:
    grant = Grant("acme", lambda: Terms(max_sessions=10))
    members = Members(grant)
    members.ask(4)
    members.ask(4)  # a frame sent ahead
    with pytest.raises(QuotaExceeded):
        members.ask(4)
    members.settle(4, 4)
    assert grant.sessions == 8
    members.settle(4, 6)  # two have closed, or found no slot
    assert grant.sessions == 6
    members.ask(1)
    members.close()
    assert grant.sessions == 0
    members.settle(1, 7)  # the engine was just about to say so
    assert grant.sessions == 0


def test_an_empty_stream_of_frames_holds_the_room_of_one() -> None:
    grant = Grant("acme", lambda: Terms(max_sessions=2))
    members = Members(grant)
    members.begin()
    assert grant.sessions == 1
    members.ask(2)
    assert grant.sessions == 2
    members.drop(1)  # it held one place, and one more
    assert grant.sessions == 1
    members.settle(1, 1)
    members.settle(0, 0)  # the last one has closed
    assert grant.sessions == 1
    other = Members(grant)
    other.begin()
    with pytest.raises(QuotaExceeded):
        Members(grant).begin()
    for each in (members, other):
        each.close()
        each.close()
    assert grant.sessions == 0


def test_a_tenant_is_idle_once_nothing_of_it_lives_or_counts() -> None:
    now_s = [100.0]
    grant = Grant("acme", lambda: Terms(steps_per_s=10), lambda: now_s[0])
    assert grant.idle
    grant.take_sessions(1)
    assert not grant.idle
    grant.give_sessions(1)
    grant.take_generation()
    assert not grant.idle
    grant.give_generation()
    assert grant.idle
    grant.spend(5)
    assert not grant.idle
    now_s[0] += 0.5
    assert grant.idle
    grant.waited(0.1)
    assert not grant.idle
    now_s[0] += 1.0
    assert grant.idle


def test_rows_are_given_back_once_however_many_say_so() -> None:
    grant = Grant("acme")
    rows = Taken(grant, 5)
    threads = [threading.Thread(target=rows.give) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert grant.sessions == 0
