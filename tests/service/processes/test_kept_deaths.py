"""Kept streams over deaths that come while they begin and resume, and those that are kept no longer."""

from __future__ import annotations

from typing import Any

import pytest

from streamcell.proto import pb
from streamcell.service.durability.journal import Entry
from streamcell.service.protocols.native.resumable import Resumable
from tests.support.kept_streams import WINDOW, Client, Engines
from tests.support.resumable import Owner, step, sums


def test_an_engine_process_that_dies_again_while_it_resumes_changes_nothing(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(engines, Owner(WINDOW).opening())
    client.opened()
    client.send(step(1))
    client.next()
    engines.lose()
    client.send(step(2))
    attach, attached = Resumable.attach, []

    def and_die(self: Resumable, *arguments: Any) -> None:
        attached.append(self)
        if len(attached) == 1:
            engines.kill()
        attach(self, *arguments)

    monkeypatch.setattr(Resumable, "attach", and_die)
    engines.begin()
    engines.wait_until_lost()
    engines.begin()
    assert sums(client.next()) == [3]
    assert len(attached) == 2
    client.send(step(4))
    assert sums(client.next()) == [7]


def test_a_message_that_kills_each_engine_process_ends_its_stream_and_no_other(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Entry.keep

    def and_die(self: Entry, number: int, steps: int, data: bytes) -> None:
        if sums(pb.StreamResponse.FromString(data))[-1] >= 100:
            with_dead.append(engines.tunnel)
            if with_dead.count(engines.tunnel) == 1:
                engines.kill()
        keep(self, number, steps, data)

    with_dead: list[Any] = []
    monkeypatch.setattr(Entry, "keep", and_die)
    good, bad = (Client(engines, Owner(WINDOW).opening()) for _ in range(2))
    good.opened(), bad.opened()
    good.send(step(1))
    assert sums(good.next()) == [1]
    bad.send(step(100))
    for _ in range(2):
        engines.wait_until_lost()
        assert bad.waits
        engines.begin()
    engines.wait_until_lost()
    assert bad.ended() == "ENGINE_LOST"
    assert engines.errors == {"ENGINE_LOST": 1}
    engines.begin()
    good.send(step(1))
    assert sums(good.next()) == [2]


@pytest.mark.parametrize("taken", [False, True])
def test_an_opening_and_the_messages_behind_it_are_taken_once(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """The engine process dies before or after it has taken the opening, and has told nobody."""
    attach, attached = Resumable.attach, []

    def and_die(self: Resumable, *arguments: Any) -> None:
        attached.append(self)
        if len(attached) == 1 and not taken:
            engines.kill()
        if len(attached) == 1 and taken:
            monkeypatch.setattr(Resumable, "_answer_opening", lambda self: engines.kill())
        attach(self, *arguments)
        monkeypatch.setattr(Resumable, "_answer_opening", answer)

    answer = Resumable._answer_opening
    monkeypatch.setattr(Resumable, "attach", and_die)
    client = Client(engines, Owner(WINDOW).opening(first=1))
    client.send(step(1), step(2))
    engines.wait_until_lost()
    assert client.waits
    engines.begin()
    assert client.opened().applied == 0
    assert [sums(client.next()) for _ in range(2)] == [[1], [3]]
    assert client.unanswered == 0


def test_a_client_may_resume_a_kept_session_with_the_attempt_that_follows_its_own(engines: Engines) -> None:
    owner = Owner(WINDOW)
    client = Client(engines, owner.opening())
    client.opened()
    for _ in range(2):
        engines.again()
        client.send(step(1))
        client.next()
    again = Client(engines, owner.resume(2))
    assert again.opened().applied == 2
    assert client.ended() == "SESSION_TAKEN_OVER"


def test_a_stream_that_its_client_has_left_does_not_take_the_session_back(engines: Engines) -> None:
    owner, slow = Owner(WINDOW), engines.front_end()
    old = Client(engines, owner.opening(), slow)
    old.opened()
    old.send(step(1))
    old.next()
    engines.again()
    new = Client(engines, owner.resume(1))
    assert new.opened().applied == 1
    assert slow.waiting == 1
    slow.attach(engines.tunnel)
    assert old.ended() == "SESSION_TAKEN_OVER"
    new.send(step(1))
    assert sums(new.next()) == [2]


def test_nobody_waits_for_ever(engines: Engines) -> None:
    given_up, left = (Client(engines, Owner(WINDOW).opening()) for _ in range(2))
    given_up.opened(), left.opened()
    engines.lose()
    engines.streams.give_up()
    assert given_up.ended() == left.ended() == "ENGINE_LOST"
    engines.begin()
    drained = Client(engines, Owner(WINDOW).opening())
    drained.opened()
    engines.lose()
    engines.streams.drain()
    assert drained.ended() == "SERVER_DRAINING"
    engines.begin()
    late = Client(engines, Owner(WINDOW).opening())
    late.opened()
    engines.lose()  # while the server shuts down
    assert late.ended() == "SERVER_DRAINING"


def test_sessions_in_memory_are_lost(engines: Engines) -> None:
    assert not engines.streams.keeps(Owner().opening(durability=pb.DURABILITY_NONE).open)
    assert not engines.streams.keeps(pb.OpenSession(model="sum"))
    assert engines.streams.keeps(Owner().opening().open)


def test_pauses_are_counted(engines: Engines) -> None:
    client = Client(engines, Owner(WINDOW).opening())
    client.opened()
    engines.again()
    engines.reported()
    for _ in range(2):  # the count is on its way before the second message
        client.send(step(1))
        client.next()
    (metrics,) = engines.host.metrics.models
    assert metrics.stream_pause_s.totals()[0] == 1
