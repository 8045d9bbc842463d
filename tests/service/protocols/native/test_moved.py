"""When a session in a shared store moves, `moved` is the last thing that its stream is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamcell.proto import pb
from streamcell.service.errors import SessionClosed
from streamcell.service.protocols.native.snapshots import Snapshots
from streamcell.service.protocols.native.stored_session import StoredSession
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.sessions.session import Output
from streamcell.service.sessions.table import hash_token
from tests.support.resumable import Owner, save_sum, step

from .test_resumable import Call, ResumableRig


class Store:
    """Has everything at once."""

    def enter(self, stored: Any) -> None: ...
    def changed(self, stored: Any, *, sync: bool) -> None: ...
    def delete(self, stored: Any) -> None: ...

    def release(self, stored: Any, done: Callable[[], None]) -> None:
        done()

    def may_tell(self) -> bool:
        return True


class Slow(Call):
    """A call on which something happens while a reply is on its way."""

    before: Callable[[], object] = staticmethod(lambda: None)

    def reply(self, data: bytes, *, last: bool = True) -> None:
        before, self.before = self.before, lambda: None
        before()
        super().reply(data, last=last)

    @property
    def told(self) -> list[str]:
        """What the stream was told, by its field."""
        fields = ("opened", "moved", "copied", "outputs")
        replies = map(pb.StreamResponse.FromString, self.replies)
        return [
            next(name for name in fields if name in {f.name for f, _ in reply.ListFields()})
            for reply in replies
        ]


class Rig(ResumableRig):
    def wire(self) -> Call:
        self.calls.append(Slow(self.later))
        return self.calls[-1]

    def stored(self, owner: Owner) -> tuple[StoredSession, Slow]:
        """A session that the store has, and a call on it."""
        level = pb.DURABILITY_STORE_ASYNC
        made = StoredSession(self.context, 4, Output.ALL, Store(), owner.id, level, lambda *given: b"")
        made.claimed(1, (0, 0, b"none"))
        known = (owner.id, hash_token(owner.token))
        made.enter(self.model, "test", known, (), lambda session: made.detached(""))
        call = self.wire()
        call.handler = StreamSession(call, self.context)  # type: ignore[arg-type]
        call.read_on()  # as for each session in a store
        self.send(call, owner.resume(0))
        assert isinstance(call, Slow)
        return made, call


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(save_sum(tmp_path))
    yield made
    made.stop()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_reply_that_is_on_its_way_comes_before_it(rig: Rig, at_once: bool) -> None:
    session, call = rig.stored(Owner())
    left: list[bool] = []
    call.before = lambda: session.move_away(lambda: left.append(True), at_once=at_once)
    rig.send(call, step(1))
    rig.flush()
    assert call.told == ["opened", "outputs", "moved"]
    assert left == [True]
    assert session.leaving
    call.handler.on_half_close()
    assert [code.name for code, _, _ in call.ends] == ["OK"]
    call.handler.on_end(False)
    assert not session.leaving


def test_messages_that_it_has_taken_are_answered_before_it_and_later_ones_are_not_taken(rig: Rig) -> None:
    session, call = rig.stored(Owner())
    rig.send(call, step(1), step(2))
    session.move_away(lambda: None)
    rig.send(call, step(3))
    assert call.told == ["opened"]
    rig.flush()
    assert call.told == ["opened", "outputs", "outputs", "moved"]
    assert session.applied == 2


def test_a_copy_that_was_asked_for_comes_before_it(rig: Rig) -> None:
    rig.context.snapshots = Snapshots(b"", 1 << 20, allow_non_finite=False)
    session, call = rig.stored(Owner())
    rig.send(call, step(1), pb.StreamRequest(copy=pb.StateCopy(snapshot=True)))
    session.move_away(lambda: None)
    rig.flush()
    assert call.told == ["opened", "outputs", "copied", "moved"]


def test_who_waits_for_it_to_leave_is_told_if_it_ends_before(rig: Rig) -> None:
    session, call = rig.stored(Owner())
    rig.send(call, step(1))
    left: list[bool] = []
    session.move_away(lambda: left.append(True))
    assert not left
    session.fail(SessionClosed("closed", session_id=""))
    rig.flush()
    assert left == [True]


def test_its_stream_does_not_wait_for_ever_for_a_store_that_does_not_take_it(rig: Rig) -> None:
    waiting: list[StoredSession] = []
    session, call = rig.stored(Owner())
    session.waits_for_store = waiting.append
    session._store.release = lambda stored, done: None  # type: ignore[method-assign]
    session.move_away(lambda: None)
    assert waiting == [session]
    assert session.waits_since()
    session.give_up_waiting()
    ((code, text, _),) = call.ends
    assert code.name == "UNAVAILABLE"
    assert "resume it" in text
    assert call.told == ["opened"]


@pytest.mark.parametrize("in_store", [True, False])
def test_a_reply_that_is_on_its_way_comes_before_the_end(rig: Rig, in_store: bool) -> None:
    call: Any = rig.stored(Owner())[1] if in_store else rig.call(Owner().opening())
    call.before = call.handler.on_half_close
    rig.send(call, step(1))
    rig.flush()
    assert call.told == ["opened", "outputs"]
    assert [code.name for code, _, _ in call.ends] == ["OK"]


@pytest.mark.parametrize("how", ["lost", "leaves"])
def test_a_stream_whose_opening_is_not_answered_yet_is_told_too(rig: Rig, how: str) -> None:
    owner = Owner()
    session, _ = rig.stored(owner)
    session.unsettled = True
    waits = rig.wire()
    waits.handler = StreamSession(waits, rig.context)  # type: ignore[arg-type]
    rig.send(waits, owner.resume(0))
    assert waits.replies == []
    if how == "lost":
        session.lost()
    else:
        session.move_away(lambda: None, at_once=True)
    assert waits.replies == []
    ((code, text, _),) = waits.ends
    assert code.name == "UNAVAILABLE"
    assert "goes on with another replica" in text
    assert not session.leaving
