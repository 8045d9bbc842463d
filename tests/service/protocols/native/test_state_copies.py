"""Copies of a resumable session in any order with runs and takeovers, and the mutants that this finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamcell.proto import pb
from streamcell.service.engine.pool import StatePool
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.native import snapshots as format_
from streamcell.service.protocols.native import state_copies
from streamcell.service.protocols.native.resumable import Resumable
from streamcell.service.protocols.native.snapshots import Snapshots
from streamcell.service.sessions.session import Aside
from tests.support.resumable import Owner, save_sum, step, sums

from .test_resumable import Call, ResumableRig


class Copying(ResumableRig):
    """One model whose sessions can be copied. Copies run on the engine's thread or with a run of the test's own."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        super().__init__(folder, **changes)
        given = self.context
        self.context = CallContext(
            given.models, self.sessions, given.metrics, given.limits, given.kept,
            Snapshots(b"", 1 << 20, allow_non_finite=False),
        )  # fmt: skip

    def settle(self, wire: Call, replies: int) -> list[pb.StreamResponse]:
        """The replies of a call, once there are so many: the engine's thread may make some of them."""
        found = self.at_least(wire, replies)
        assert len(found) == replies
        return found

    def at_least(self, wire: Call, replies: int) -> list[pb.StreamResponse]:
        """The same; there may be more."""
        deadline_s = time.monotonic() + 60
        while len(wire.replies) < replies and time.monotonic() < deadline_s:
            self.flush()
            time.sleep(0.001)
        assert len(wire.replies) >= replies, wire.ends
        return [pb.StreamResponse.FromString(data) for data in wire.replies]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Copying]:
    made = Copying(save_sum(tmp_path))  # test_copies_in_any_order.py has more sessions than rows, too
    yield made
    made.flush()
    made.stop()


def copy(**kind: Any) -> pb.StreamRequest:
    return pb.StreamRequest(copy=pb.StateCopy(**kind))


def fork_of(owner: Owner) -> pb.StreamRequest:
    return copy(fork=pb.Fork(session=owner.session, token=owner.token, window=owner.window))


def wrong_copies(rig: Copying) -> list[str]:
    """What is wrong with a fork, a snapshot and a rewind in the midst of messages."""
    found = []
    fork = Owner()
    wire = rig.call(Owner().opening(), step(1), fork_of(fork), step(2), copy(snapshot=True), step(4))
    _, one, forked, three, kept, seven = rig.settle(wire, 6)
    if [sums(one), sums(three), sums(seven)] != [[1], [3], [7]]:
        found.append("the session itself has changed")
    if (forked.step_index, kept.step_index) != (1, 2):
        found.append("a copy is of another step")
    other = rig.call(fork.resume(0), step(10), step(10))
    if [sums(each) for each in rig.settle(other, 3)[1:]] != [[11], [21]]:
        found.append("the fork has another state")
    rig.send(wire, step(8))
    if sums(rig.settle(wire, 7)[-1]) != [15]:
        found.append("the fork's steps reach its source")
    snapshot = kept.copied.snapshot
    restored = rig.call(Owner().opening(snapshot=snapshot), step(10))
    if not restored.ends and sums(rig.settle(restored, 2)[-1]) != [13]:
        found.append("what is restored has another state")
    rig.send(wire, copy(restore=snapshot))
    rig.settle(wire, 8)
    rig.send(wire, step(100))
    if sums(rig.settle(wire, 9)[-1]) != [103]:
        found.append("the rewind leads to another state")
    for at in range(0, len(snapshot), 7):
        flipped = snapshot[:at] + bytes([snapshot[at] ^ 1]) + snapshot[at + 1 :]
        rig.send(wire, copy(restore=flipped))
        if not rig.settle(wire, 10 + at // 7)[-1].copied.error.reason:
            found.append("a flipped bit is taken")
            break
    return found


def test_copies_are_right(rig: Copying) -> None:
    assert wrong_copies(rig) == []
    assert rig.model.metrics.state_copies == {"fork": 1, "snapshot": 1, "restore": 1, "rewind": 1}


def shared_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork reads and writes its source's row."""
    enter = Resumable.enter

    def share(self: Resumable, model: Any, peer: str, known: Any, *more: Any) -> None:
        enter(self, model, peer, known, *more)
        parents = [live for live in self._context.sessions.all() if live.session.session_id != known[0]]
        if not self.live.session.fresh and not self.unsettled:
            self.live.session.reads = self.live.session.writes = parents[0].session.writes

    monkeypatch.setattr(Resumable, "enter", share)


def nothing_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork has the state that its slot happens to have."""
    monkeypatch.setattr(StatePool, "copy", lambda self, source, target: None)


def out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot is taken when its message arrives, not when those before it have run."""
    ask = Resumable.ask

    def at_once(self: Resumable, stream: Any, aside: Aside) -> bool:
        aside.do()
        aside.do = lambda: None
        return ask(self, stream, aside)

    monkeypatch.setattr(Resumable, "ask", at_once)


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check sum is not looked at."""

    class Crc:
        @staticmethod
        def crc32(data: bytes) -> int:
            return 0

    monkeypatch.setattr(format_, "zlib", Crc)


def wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewind writes a row, and the session goes on in the one that it had."""

    def put_back(session: Resumable, context: Any, image: Any) -> None:
        session.live.model.engine.pool.write(session.live.session.writes + 1, image.states(0))

    monkeypatch.setattr(state_copies, "_put_back", put_back)


@pytest.mark.interpreted("its mutants replace what compiled code calls directly")
@pytest.mark.parametrize(
    ("mutant", "fault"),
    [
        (shared_row, "the fork's steps reach its source"),
        (nothing_copied, "the fork has another state"),
        (out_of_order, "a copy is of another step"),
        (unchecked, "a flipped bit is taken"),
        (wrong_row, "the rewind leads to another state"),
    ],
)
def test_a_server_that_breaks_a_rule_is_found(
    rig: Copying, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None], fault: str
) -> None:
    mutant(monkeypatch)
    assert fault in wrong_copies(rig)


def test_a_copy_that_waits_is_dropped_with_its_stream_and_another_stream_is_not_answered_for_it(
    rig: Copying,
) -> None:
    owner, fork = Owner(window=2), Owner()
    old = rig.call(owner.opening(), step(1), fork_of(fork))
    new = rig.call(owner.resume(0))
    rig.flush()
    assert rig.settle(new, 1)[0].opened.applied == 0
    # The window is free again: with what was dropped still in it the second message would close it.
    assert rig.send(new, step(1), fork_of(fork)) == [True, True]
    _, one, forked = rig.settle(new, 3)
    assert (sums(one), forked.copied.applied, len(old.replies)) == ([1], 1, 1)
    assert rig.send(new, step(1), step(1), step(1))[-1] is False


def test_a_restored_session_answers_every_opening_only_with_its_state(rig: Copying) -> None:
    first = rig.call(Owner().opening(), step(5), copy(snapshot=True))
    snapshot = rig.settle(first, 3)[2].copied.snapshot
    owner = Owner()
    busy = rig.call(Owner().opening(), step(1))
    calls: list[Call] = []

    def twice() -> None:  # while the engine is busy, so the state is not there yet
        calls.append(rig.call(owner.opening(snapshot=snapshot)))
        calls.append(rig.call(owner.opening(snapshot=snapshot, first=1), step(1)))
        assert not calls[0].replies
        assert not calls[1].replies

    rig.during_the_next_run(twice)
    rig.settle(busy, 2)
    opened, one = rig.settle(calls[1], 2)
    assert (opened.opened.step_index, sums(one)) == (1, [6])
    assert calls[0].ended == ["another opening has taken this session"]


def test_a_session_that_ends_while_it_waits_for_its_state_frees_its_slot(rig: Copying) -> None:
    first = rig.call(Owner().opening(), step(5), copy(snapshot=True))
    snapshot = rig.settle(first, 3)[2].copied.snapshot
    owner = Owner()
    busy = rig.call(Owner().opening(), step(1))

    def open_and_close() -> None:
        rig.call(owner.opening(snapshot=snapshot))
        rig.sessions.close(owner.id, owner.token)

    rig.during_the_next_run(open_and_close)
    rig.settle(busy, 2)
    rig.flush()
    assert rig.model.batcher.live == 2


def test_nothing_is_sent_behind_a_restore(rig: Copying) -> None:
    owner = Owner()
    wire = rig.call(owner.opening(), step(1), copy(restore=b"none"), step(2))
    assert wire.ended == ["a message behind `restore`: wait for its reply, which may refuse it"]
    rig.flush()
    # A restore that was dropped with its stream holds up nobody.
    owner = Owner()
    rig.call(owner.opening(), step(1), copy(restore=b"none"))
    new = rig.call(owner.resume(0), step(1), step(2))
    assert [sums(each) for each in rig.settle(new, 3)[1:]] == [[1], [3]]


@pytest.fixture
def kept_rig(tmp_path: Path) -> Iterator[Copying]:
    made = Copying(
        save_sum(tmp_path),
        durability="process",
        journal_dir=tmp_path / "journal",
        journal_reply_bytes=1 << 14,
    )
    yield made
    made.flush()
    made.stop()


def behind_a_restore(rig: Copying, *messages: pb.StreamRequest) -> Call:
    """A session that is opened with a snapshot and has those messages before the engine thread has settled it."""
    wire = rig.call(Owner().opening(), step(1), copy(snapshot=True))
    snapshot = rig.settle(wire, 3)[-1].copied.snapshot
    made: list[Call] = []
    rig.send(wire, step(2))
    rig.during_the_next_run(
        lambda: made.append(rig.call(Owner().opening(snapshot=snapshot, first=1), *messages))
    )
    rig.settle(wire, 4)
    return made[0]


def test_a_generation_behind_a_restore_has_its_request_in_the_journal(kept_rig: Copying) -> None:
    generate = pb.StreamRequest(generate=pb.Generate(steps=3), inputs=step(1).inputs)
    wire = behind_a_restore(kept_rig, generate)
    kept_rig.settle(wire, 4)
    entry = wire.handler.session.live.session.journal_entry  # type: ignore[attr-defined]
    assert pb.StreamRequest.FromString(entry.told.found(1, 4).request).generate.steps == 3


def test_a_generation_behind_a_restore_that_the_journal_has_no_room_for_is_refused(kept_rig: Copying) -> None:
    generate = pb.Generate(steps=100, steps_per_reply=100)
    wire = behind_a_restore(kept_rig, pb.StreamRequest(generate=generate, inputs=step(1).inputs))
    assert len(wire.ended) == 1
    assert "the journal has room for" in wire.ended[0]
    other = kept_rig.call(Owner().opening(), step(5))
    assert sums(kept_rig.settle(other, 2)[-1]) == [5]


def test_a_generation_behind_a_restore_goes_on_from_the_snapshot_s_last_output(rig: Copying) -> None:
    wire = behind_a_restore(rig, pb.StreamRequest(generate=pb.Generate(steps=1)))
    _, reply = rig.settle(wire, 2)
    assert sums(reply) == [2]  # the sum 1, fed back
