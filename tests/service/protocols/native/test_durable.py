"""How a client learns how far the store is: with the next reply, or alone if none comes; and what the store is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamcell.proto import pb
from streamcell.service.protocols.native.stored_session import StoredSession
from tests.support.inline_rig import NotingPolicy
from tests.support.resumable import Owner, save_sum, step

from .test_moved import Rig, Slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(save_sum(tmp_path))
    yield made
    made.stop()


def stepped(rig: Rig, owner: Owner | None = None) -> tuple[StoredSession, Slow]:
    """A session that has applied a message, and whose client has the reply."""
    session, call = rig.stored(owner or Owner())
    rig.send(call, step(1))
    rig.flush()
    assert durable(call) == [0]
    return session, call


def durable(call: Slow) -> list[int]:
    """What the replies behind the opening's say."""
    return [pb.StreamResponse.FromString(data).durable for data in call.replies[1:]]


def test_it_rides_on_the_next_reply(rig: Rig) -> None:
    session, call = stepped(rig)
    assert not session.stored(1, 0)
    assert durable(call) == [0]
    rig.send(call, step(2))
    rig.flush()
    assert durable(call) == [0, 1]
    session.tell_durable()
    assert durable(call) == [0, 1]


def test_runs_of_its_messages_may_take_longer_inline_because_each_is_read_apart(rig: Rig) -> None:
    _, call = stepped(rig)
    plain = rig.call(Owner().opening())
    rig.model.batcher.inline.policy = policy = NotingPolicy()
    rig.send(call, step(2))
    rig.send(plain, step(1))
    rig.flush()
    assert [(rows, read_apart) for rows, _, read_apart in policy.runs] == [(2, 1)]


def test_it_goes_alone_if_no_reply_comes(rig: Rig) -> None:
    session, call = stepped(rig)
    assert not session.stored(1, 0)
    session.tell_durable()
    session.tell_durable()
    assert pb.StreamResponse.FromString(call.replies[-1]) == pb.StreamResponse(durable=1)
    assert durable(call) == [0, 1]
    assert session.stored(1, 0)


def test_it_waits_for_a_reply_that_is_due(rig: Rig) -> None:
    session, call = stepped(rig)
    rig.send(call, step(2))
    assert not session.stored(1, 0)
    session.tell_durable()
    assert durable(call) == [0]
    rig.flush()
    assert durable(call) == [0, 1]


def test_it_does_not_follow_a_session_that_has_moved(rig: Rig) -> None:
    session, call = stepped(rig)
    assert not session.stored(1, 0)
    session.move_away(lambda: None)
    session.tell_durable()
    assert call.told == ["opened", "outputs", "moved"]


def test_nobody_is_told_if_no_stream_has_the_session(rig: Rig) -> None:
    owner = Owner()
    session, call = stepped(rig, owner)
    call.handler.on_end(True)
    assert session.stored(1, 0)
    again = rig.call(owner.resume(1))
    assert pb.StreamResponse.FromString(again.replies[0]).opened.durable == 1


def test_the_store_hears_once_of_changes_between_two_images(rig: Rig) -> None:
    session, call = rig.stored(Owner())
    heard: list[bool] = []
    session._store.changed = lambda stored, *, sync: heard.append(sync)  # type: ignore[method-assign]
    for number in (1, 2):
        rig.send(call, step(1), step(1))
        rig.flush()
        assert heard == [False] * number
        session.image()


def test_the_store_hears_of_each_change_that_a_client_waits_for(rig: Rig) -> None:
    session, call = rig.stored(Owner())
    heard: list[bool] = []
    session._store.changed = lambda stored, *, sync: heard.append(sync)  # type: ignore[method-assign]
    session._store.may_tell = lambda: False  # type: ignore[method-assign]
    for _ in range(3):
        rig.send(call, step(1))
        rig.flush()
    assert heard == [True] * 3
    session._store.may_tell = lambda: True  # type: ignore[method-assign]
    session.tell_stored()
    assert call.told == ["opened", "outputs", "outputs", "outputs"]
