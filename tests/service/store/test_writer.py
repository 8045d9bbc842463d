"""The writer: what it writes when, how much at once, and what it tells."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from streamcell.service.store import batch, functions, writer
from streamcell.service.store.cipher import Checked
from streamcell.service.store.connection import Connection
from streamcell.service.store.figures import Figures
from streamcell.service.store.interface import Claimed
from streamcell.service.store.lease import Lease
from tests.support.mutants import mutant
from tests.support.stores import TOKEN, Counting, new_id
from tests.support.valkey import ValkeyServer
from tests.support.waiting import waited


class Recording(Connection):
    """A connection that keeps what was sent."""

    def __init__(self, server: ValkeyServer) -> None:
        super().__init__(server.address, "test", timeout_s=10.0)
        self.sent: list[list[bytes]] = []

    def exchange(self, commands: Sequence[bytes], *, confirmed: bool = False) -> list[Any]:
        self.sent.append(list(commands))
        return super().exchange(commands, confirmed=confirmed)


class Rig:
    """A writer whose thread does not run: the test writes, one call at a time."""

    def __init__(self, server: ValkeyServer, module: Any = writer) -> None:
        self.lease = Lease(Connection(server.address, "test", timeout_s=10.0), "w", "", 60.0, Figures())
        self.lease.look()
        self.connection = Recording(server)
        self.figures = Figures()
        self.now_s, self.cpu_s = 1000.0, 0.0
        self.writer = module.Writer(
            self.connection,
            self.lease,
            Checked(),
            self.figures,
            clock=lambda: self.now_s,
            cpu_clock=lambda: self.cpu_s,
        )

    def session(self, kind: type[Counting] = Counting) -> Any:
        """A session that is entered and in the store."""
        key = new_id()
        session = kind(key, Claimed(self.claim(key), True, 0, 0, b"", False))
        assert self.writer.enter(session)
        self.writer._write()
        session.told.clear()
        return session

    def claim(self, key: bytes, boot: str = "") -> int:
        boot = boot or self.lease.boot
        keys = [functions.lease_key(boot), functions.record_key(key), functions.FENCE]
        place = functions.place(0, 0)
        attempt = b"%020d" % (1 if boot == self.lease.boot else 2)
        answer = self.connection.ask(
            functions.call(
                "claim",
                keys,
                [boot.encode(), TOKEN, attempt, b"0", b"", b"m", b"1", b"0", b"0", b"9", place, b""],
            )
        )
        return int(answer[1])

    def change(self, session: Counting) -> None:
        session.number += 1
        self.writer.changed(session, False)


@pytest.fixture
def rig(shared: ValkeyServer) -> Rig:
    return Rig(shared)


def what_changes_while_it_is_written_is_written_again(server: ValkeyServer, module: Any = writer) -> None:
    """21: a step that comes right behind the copy."""
    rig = Rig(server, module)

    class Busy(Counting):
        def image(self) -> tuple[int, int, bytes] | None:
            copied = super().image()
            if self.number == 1:
                rig.change(self)
            return copied

    session = rig.session(Busy)
    rig.change(session)
    rig.writer._write()
    assert session.told == [(1, 0)]
    assert rig.writer.lag_s() == 0.0
    assert rig.writer._due_s() is not None
    rig.writer._write()
    assert session.told == [(1, 0), (2, 0)]
    assert rig.writer._due_s() is None


def an_answer_that_failed_is_not_told(server: ValkeyServer, module: Any = writer) -> None:
    """A call that broke may have been carried out or not: it is made again, and only then told."""
    rig = Rig(server, module)
    sessions = [rig.session() for _ in range(3)]
    for each in sessions:
        rig.change(each)
    real, rig.connection.exchange = rig.connection.exchange, _breaks  # type: ignore[method-assign]
    rig.now_s += 2.0
    with pytest.raises(ConnectionResetError):
        rig.writer._write()
    assert [each.told for each in sessions] == [[], [], []]
    assert rig.writer.lag_s() == 2.0
    rig.connection.exchange = real  # type: ignore[method-assign]
    rig.writer._write()
    assert [each.told for each in sessions] == [[(1, 0)]] * 3
    assert rig.writer.lag_s() == 0.0


def _breaks(commands: Sequence[bytes], *, confirmed: bool = False) -> list[Any]:
    raise ConnectionResetError


def a_session_that_is_anothers_is_told_and_left_alone(server: ValkeyServer, module: Any = writer) -> None:
    """27: the neighbours in its call are written."""
    rig = Rig(server, module)
    taken, kept = rig.session(), rig.session()
    server.call("SET", functions.lease_key("thief"), "")
    server.call("HSET", functions.record_key(taken.key), "owner", "thief")
    for each in (taken, kept):
        rig.change(each)
    rig.writer._write()
    assert (taken.is_lost.is_set(), taken.told) == (True, [])
    assert (kept.is_lost.is_set(), kept.told) == (False, [(1, 0)])
    assert rig.figures.fenced == 1
    sent = len(rig.connection.sent)
    rig.change(taken)
    rig.writer._write()
    assert len(rig.connection.sent) == sent
    rig.change(kept)
    rig.writer._write()
    assert kept.told == [(1, 0), (2, 0)]


def what_no_reply_has_told_is_told_alone_a_moment_later(server: ValkeyServer, module: Any = writer) -> None:
    """A client that keeps what is not durable may wait for it before it sends."""
    rig = Rig(server, module)
    lacks, knows = rig.session(), rig.session()
    lacks.knows = False
    for each in (lacks, knows):
        rig.change(each)
    rig.writer._write()
    assert rig.writer._due_s() is None
    assert not rig.writer._tell_untold()
    rig.now_s += writer.BEHIND_S
    assert rig.writer._tell_untold()
    assert not rig.writer._tell_untold()
    assert (lacks.told_alone, knows.told_alone) == ([1], [])


TRACES = [
    what_changes_while_it_is_written_is_written_again,
    an_answer_that_failed_is_not_told,
    a_session_that_is_anothers_is_told_and_left_alone,
    what_no_reply_has_told_is_told_alone_a_moment_later,
]
MUTANTS: dict[str, tuple[Callable[..., None], str, str]] = {
    "a change is forgotten": (
        TRACES[0], "        for each in done:\n            _told(each)", "        self._dirty.clear()"
    ),
    "a failed call is forgotten": (TRACES[1], "in reversed(batch.taken):", "in []:"),
    "all are told": (TRACES[2], 'if letter == ord("1"):', "if True:"),
    "a client is left in the dark": (TRACES[3], "untold.append(stored)", "pass"),
    "a client is told at once": (TRACES[3], "self._clock() + BEHIND_S, untold", "self._clock(), untold"),
    "one is all": (TRACES[2], "_told(stored.lost)", "_told(stored.lost)\n        self._entered.clear()"),
}  # fmt: skip


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.__name__)
def test_the_writer_holds(shared: ValkeyServer, trace: Callable[..., None]) -> None:
    trace(shared)


@pytest.mark.parametrize("mistake", MUTANTS)
def test_the_trace_notices_the_mistake(shared: ValkeyServer, mistake: str) -> None:
    trace, old, new = MUTANTS[mistake]
    wrong = mutant("service.store.writer", old, new)
    with pytest.raises(AssertionError):
        trace(shared, wrong)


def test_one_call_writes_many_and_a_bounded_number(rig: Rig) -> None:
    sessions = [rig.session() for _ in range(300)]
    for each in sessions:
        rig.change(each)
        rig.change(each)
    rig.connection.sent.clear()
    rig.writer._write()
    rig.writer._write()
    assert [len(commands) for commands in rig.connection.sent] == [1, 1]
    assert sum(each.told == [(2, 0)] for each in sessions) == 300
    assert rig.writer._due_s() is None
    assert rig.figures.write_s.totals()[0] >= 2


def test_copying_many_sessions_lets_other_threads_run_in_between(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []

    class Watched(Counting):
        def image(self) -> tuple[int, int, bytes] | None:
            copied[-1] += 1
            return super().image()

    monkeypatch.setattr(time, "sleep", lambda seconds: copied.append(0))
    for _ in range(100):
        session = Watched(new_id(), Claimed(2**60, True, 0, 0, b"", False))
        rig.writer.enter(session)
    copied.append(0)
    rig.writer._write()
    assert sum(copied) == 100
    assert max(copied) <= 16


@pytest.mark.parametrize("by", ["a change", "the end"])
def test_copying_rests_no_longer_once_somebody_waits(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    rests: list[float] = []

    class Waited(Counting):
        """Somebody begins to wait while it is copied."""

        def image(self) -> tuple[int, int, bytes] | None:
            if by == "a change":
                rig.writer.changed(self, True)
            else:
                rig.writer.stop(0.0)
            return super().image()

    monkeypatch.setattr(time, "sleep", rests.append)
    kinds = [*[Counting] * 40, Waited, *[Counting] * 59]
    for kind in kinds:
        rig.writer.enter(kind(new_id(), Claimed(2**60, True, 0, 0, b"", False)))
    rig.writer._write()
    assert rests == [writer._GAP_S] * 2 + [0] * 4


def test_one_call_has_a_bounded_number_of_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Counting):
        def image(self) -> tuple[int, int, bytes] | None:
            return self.number, 0, bytes(1000)

    monkeypatch.setattr(batch, "MOST_BYTES", 4000)
    sessions = [rig.session(Large) for _ in range(10)]
    for each in sessions:
        rig.change(each)
    rig.connection.sent.clear()
    while rig.writer._due_s() is not None:
        rig.writer._write()
    assert max(len(command) for (command,) in rig.connection.sent) < 6000
    assert [each.told for each in sessions] == [[(1, 0)]] * 10


def test_a_session_that_cannot_be_copied_or_is_too_large_does_not_hold_up_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Counting):
        def image(self) -> tuple[int, int, bytes] | None:
            if self.number == 1:
                raise RuntimeError("a bug")
            return super().image()

    class Huge(Counting):
        def image(self) -> tuple[int, int, bytes] | None:
            return self.number, 0, bytes(2000 * self.number)

    monkeypatch.setattr(batch, "MOST_IMAGE_BYTES", 1000)
    broken, huge, good = rig.session(Broken), rig.session(Huge), rig.session()
    for each in (broken, huge, good):
        rig.change(each)
    rig.writer._write()
    assert (broken.is_lost.is_set(), huge.is_lost.is_set(), good.told) == (True, True, [(1, 0)])


def test_changes_wait_for_each_other_unless_somebody_waits_for_them(rig: Rig) -> None:
    session, other = rig.session(), rig.session()
    rig.change(session)
    assert rig.writer._due_s() == rig.now_s + writer.BEHIND_S
    rig.now_s += 0.03
    rig.change(other)
    assert rig.writer._due_s() == rig.now_s - 0.03 + writer.BEHIND_S  # of the oldest
    rig.writer.changed(other, True)
    assert rig.writer._due_s() == 0.0
    assert rig.writer.lag_s() == pytest.approx(0.03)


def test_writing_behind_takes_no_more_than_its_share_unless_changes_would_wait_for_too_long(rig: Rig) -> None:
    class Costly(Counting):
        cost_s = 0.0

        def image(self) -> tuple[int, int, bytes] | None:
            rig.cpu_s += self.cost_s
            return super().image()

    session = rig.session(Costly)
    for cost_s, wait_s in (
        (0.001, writer.BEHIND_S),
        (0.02, 0.02 / writer.SHARE),
        (3.0, writer.MOST_BEHIND_S),
        (0.0, writer.BEHIND_S),
    ):
        session.cost_s = cost_s
        rig.change(session)
        rig.writer._write()
        rig.change(session)
        assert rig.writer._due_s() == pytest.approx(rig.now_s + wait_s)
    session.cost_s = 0.02
    rig.writer._write()
    rig.writer.changed(session, True)
    assert rig.writer._due_s() == 0.0


def test_a_release_writes_what_is_left_in_the_call_that_gives_the_session_away(
    rig: Rig, shared: ValkeyServer
) -> None:
    session, done = rig.session(), threading.Event()
    session.number = 5
    rig.connection.sent.clear()
    rig.writer.release(session, done.set)
    assert rig.writer.busy_with(session.key)
    rig.writer._write()
    assert done.is_set()
    assert not rig.writer.busy_with(session.key)
    assert [len(commands) for commands in rig.connection.sent] == [1]
    record = shared.record(session.key)
    assert (record["owner"], record["at"]) == (b"", functions.place(5, 0))


def test_a_session_that_has_ended_before_it_was_entered_is_not_kept(rig: Rig) -> None:
    session = rig.session()
    session.ended = True
    rig.writer.changed(session, False)
    rig.writer._write()
    assert rig.writer.entered(session.key) is None


def test_deletions_that_wait_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = [rig.session() for _ in range(6)]
    monkeypatch.setattr(writer, "MOST_DELETIONS", 4)
    for each in sessions:
        rig.writer.delete(each)
    assert len(rig.writer._deleting) == 4


@contextmanager
def running(rig: Rig) -> Iterator[None]:
    rig.writer.start()
    try:
        yield
    finally:
        rig.writer.stop(60.0)


def test_a_client_is_told_alone_though_nothing_more_is_written(rig: Rig) -> None:
    session = rig.session()
    session.knows = False
    rig.change(session)
    ticks = itertools.count()
    rig.writer._clock = lambda: 0.01 * next(ticks) + rig.now_s
    with running(rig):
        assert waited(lambda: session.told_alone == [1])
    assert session.told == [(1, 0)]


def test_what_is_left_is_written_when_the_server_stops(rig: Rig, shared: ValkeyServer) -> None:
    sessions = [rig.session() for _ in range(400)]
    with running(rig):
        for each in sessions:
            rig.change(each)
    assert {shared.record(each.key)["at"] for each in sessions} == {functions.place(1, 0)}
