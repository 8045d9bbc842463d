"""What comes from the store when its session, its fork or its call has ended in the meantime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamcell.proto import pb
from streamcell.service.errors import ServiceError, SessionClosed, SessionNotFound
from streamcell.service.protocols.native.openings import Resume
from streamcell.service.protocols.native.resumable import Resumable
from streamcell.service.protocols.native.stored_session import StoredSession
from streamcell.service.protocols.native.stored_sessions import StoredSessions
from streamcell.service.sessions.session import Output
from streamcell.service.sessions.table import hash_token
from streamcell.service.store.errors import SessionMoved
from streamcell.service.store.interface import Claim, Claimed
from tests.support.resumable import Owner, save_sum

from .test_resumable import Call, ResumableRig


class Store:
    """Notes what it is told, and answers a claim when the test says so."""

    level_sync = False

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.answers: list[Callable[[Claimed | ServiceError], None]] = []

    def claim(self, asked: Claim, done: Callable[[Claimed | ServiceError], None]) -> None:
        self.answers.append(done)

    def enter(self, stored: Any) -> None:
        self.told.append(("enter", stored.fence))

    def delete(self, stored: Any) -> None:
        self.told.append(("delete", stored.fence))

    def free(self, session: bytes) -> None:
        self.told.append(("free", 0))

    def changed(self, stored: Any, *, sync: bool) -> None: ...

    def may_tell(self) -> bool:
        return True


class Opening:
    """A call whose opening waits for the store."""

    def __init__(self, call: Call) -> None:
        self.call: Any = call
        self.error: ServiceError | None = None

    def landed(self, session: Resumable, asked: Resume) -> None: ...

    def refused(self, error: ServiceError) -> None:
        self.error = error


class Rig(ResumableRig):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store: Any = Store()
        self.stored = StoredSessions(self.store, self.sessions, sealed=False)

    def made(self, owner: Owner) -> StoredSession:
        """A session that is not claimed yet."""
        level = pb.DURABILITY_STORE_ASYNC
        made = StoredSession(self.context, 4, Output.ALL, self.store, owner.id, level, lambda *given: b"")
        made.claimed(0, (0, 0, b"none"))
        known = (owner.id, hash_token(owner.token))
        made.enter(self.model, "test", known, (), lambda session: made.detached(""))
        return made


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(save_sum(tmp_path))
    yield made
    made.stop()


def held(fence: int) -> Claimed:
    return Claimed(fence, created=False, number=0, steps=0, image=b"", held=True)


def test_a_session_that_has_just_left_is_asked_for_again_by_its_client(rig: Rig) -> None:
    owner, opening = Owner(), Opening(rig.wire())
    claim = Claim(owner.session, hash_token(owner.token), 2, "", "sum", may_create=False)
    asked = Resume.of(owner.resume(0).open, alone=True, again=False)
    rig.stored.open(claim, asked, rig.context, opening)
    rig.store.answers[0](held(7))
    assert isinstance(opening.error, SessionMoved)
    assert rig.store.told == []  # it leaves by itself


def test_the_record_of_a_fork_that_has_ended_before_it_was_claimed_is_deleted(rig: Rig) -> None:
    made, told = rig.made(Owner()), []
    rig.stored.fork(made, told.append)
    made.fail(SessionClosed("closed"))
    rig.store.answers[0](Claimed(7, created=False, number=0, steps=0, image=b"x", held=False))
    assert rig.store.told[-2:] == [("enter", 7), ("delete", 7)]
    assert told == [None]


def test_no_record_is_made_of_a_fork_that_has_ended(rig: Rig) -> None:
    made, told = rig.made(Owner()), []
    made.fail(SessionClosed("closed"))
    rig.stored.fork(made, told.append)
    assert rig.store.answers == []
    (error,) = told
    assert isinstance(error, SessionNotFound)


def test_a_client_that_begins_to_wait_while_it_is_looked_at_is_not_forgotten(rig: Rig) -> None:
    class Waits:
        def tell_stored(self) -> None: ...

        def waits_since(self) -> float | None:
            rig.stored._waiting.add(self)  # type: ignore[arg-type]  # a reply, right behind the look
            return None

    session: Any = Waits()
    rig.stored._waiting.add(session)
    rig.stored.look()
    assert session in rig.stored._waiting


@pytest.mark.interpreted("its stand-in for a generation is none of compiled code")
def test_a_generation_whose_session_ends_before_it_goes_on_gives_its_room_back(rig: Rig) -> None:
    dropped: list[object] = []

    class Work:
        drop = staticmethod(dropped.append)

    made = rig.made(Owner())
    made.expects(Work(), 3)  # type: ignore[arg-type]
    made.fail(SessionClosed("closed"))
    assert dropped == [rig.model.batcher.capacity]
