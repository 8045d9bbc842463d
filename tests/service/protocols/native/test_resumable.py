"""The rules of a takeover, with runs that happen when the test says so: in any order nothing is applied twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamcell.proto import pb
from streamcell.service.batching.batch import Batch
from streamcell.service.batching.inline import InlinePolicy
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.lifecycle.table import Models
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import Limits
from streamcell.service.protocols.native.stream import StreamSession
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.kept_replies import KeptReplies, KeptRoom
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings
from streamcell.service.transport.calls import StreamHandler
from tests.support.resumable import Owner, save_sum, step, sums


class AlwaysShort(InlinePolicy):
    """Runs are done on the thread that brings messages, when that thread says so."""

    def __init__(self) -> None:
        super().__init__()
        self.short = True

    def ran(self, rows: int, took_s: float) -> None: ...


class Wire:
    """A call whose messages the test brings, and whose replies it keeps."""

    peer = "test"
    gone = "cancelled"

    def __init__(self, later: list[Callable[[], None]]) -> None:
        self._later = later
        self.replies: list[pb.StreamResponse] = []
        self.handler: StreamHandler
        self.ended: list[str] = []
        self.resumed = 0

    def hand_to(self, handler: StreamHandler) -> None:
        self.handler = handler

    def reply(self, data: bytes, *, last: bool = True) -> None:
        if not self.ended:
            self.replies.append(pb.StreamResponse.FromString(data))

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        self._later.append(callback)
        return True

    def skip(self) -> None: ...

    def resume(self) -> None:
        self.resumed += 1

    def end(self, code: Any = None, details: str = "", trailing: Any = ()) -> None:
        self.ended.append(details)

    @property
    def applied(self) -> int:
        """What the opening's reply says."""
        assert self.replies[0].HasField("opened")
        return self.replies[0].opened.applied


class Rig:
    """One model, and calls on it."""

    def __init__(self, folder: Path) -> None:
        settings = Settings.load(models=folder, max_chunk=4)
        self.model: LoadedModel = load(open_model(folder / "sum.onnx", "sum"), settings, Device())
        self.sessions = SessionTable(idle_timeout_s=0, linger_s=60)
        limits = Limits(1 << 20, 4096, allow_non_finite=False, max_generate_steps=100, max_beam_width=8)
        self.room = KeptRoom(1 << 20, 1 << 20, 8)
        self.context = CallContext(Models([self.model]), self.sessions, ServerMetrics(), limits, self.room)
        self.model.batcher.inline.policy = AlwaysShort()
        while not self.model.batcher.inline.asleep:
            time.sleep(0.001)
        self.later: list[Callable[[], None]] = []

    def call(self, *messages: pb.StreamRequest) -> Wire:
        wire = Wire(self.later)
        wire.handler = StreamSession(wire, self.context)  # type: ignore[arg-type]
        self.send(wire, *messages)
        return wire

    def send(self, wire: Wire, *messages: pb.StreamRequest) -> list[bool]:
        return [wire.handler.on_message(message.SerializeToString()) for message in messages]

    def run(self) -> None:
        """Run all that waits."""
        while self.later:
            self.later.pop(0)()

    def during_the_next_run(self, action: Callable[[], None]) -> None:
        """Do something while the next batch is in the engine."""
        inline = self.model.batcher.inline
        run = inline.run

        def run_with(batch: Batch) -> None:
            inline.run = run
            action()
            run(batch)

        inline.run = run_with


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(save_sum(tmp_path))
    yield made
    made.model.runner.stop()


def test_messages_that_wait_are_dropped_and_may_be_sent_again(rig: Rig) -> None:
    owner = Owner()
    old = rig.call(owner.opening(), step(1), step(2))
    new = rig.call(owner.resume(0))
    assert new.applied == 0
    assert old.ended == ["another opening has taken this session"]
    rig.run()
    rig.send(new, step(1), step(2))
    rig.run()
    assert [sums(reply) for reply in new.replies[1:]] == [[1], [3]]
    assert len(old.replies) == 1


def test_a_message_in_the_engine_is_let_finish_before_the_takeover_is_answered(rig: Rig) -> None:
    owner = Owner()
    old = rig.call(owner.opening(), step(1))
    taken: list[Wire] = []

    def take_over() -> None:
        rig.send(old, step(2))
        taken.append(rig.call(owner.resume(0)))
        assert not taken[0].replies

    rig.during_the_next_run(take_over)
    rig.run()
    new = taken[0]
    assert new.applied == 1
    assert sums(new.replies[1]) == [1]
    rig.send(new, step(2))
    rig.run()
    assert sums(new.replies[2]) == [3]


def test_a_message_of_several_runs_is_let_finish(rig: Rig) -> None:
    owner = Owner()
    rig.call(owner.opening(), step(*range(1, 11)), step(100))
    taken: list[Wire] = []
    rig.during_the_next_run(lambda: taken.append(rig.call(owner.resume(0))))
    rig.run()
    assert taken[0].applied == 1
    assert sums(taken[0].replies[1])[-1] == 55
    rig.send(taken[0], step(100))
    rig.run()
    assert sums(taken[0].replies[2]) == [155]


def test_a_stream_that_lost_its_session_neither_steps_nor_ends_it(rig: Rig) -> None:
    owner = Owner()
    old = rig.call(owner.opening())
    new = rig.call(owner.resume(0))
    rig.send(old, step(1), pb.StreamRequest(inputs=[b"abc"]), pb.StreamRequest(received=1))
    old.handler.on_half_close()
    old.handler.on_end(False)
    rig.run()
    rig.send(new, step(2))
    rig.run()
    assert sums(new.replies[1]) == [2]
    assert len(rig.sessions) == 1


def test_openings_overtake_each_other_and_only_the_latest_is_answered(rig: Rig) -> None:
    owner = Owner()
    rig.call(owner.opening(), step(1))
    second, third = owner.resume(0), owner.resume(0)
    calls: list[Wire] = []

    def both() -> None:
        calls.extend((rig.call(third), rig.call(second)))

    rig.during_the_next_run(both)
    rig.run()
    assert calls[0].applied == 1
    assert calls[1].ended == ["a later opening has taken this session; this one changes nothing"]
    assert not calls[1].replies


def test_messages_behind_the_opening_wait_for_its_answer_and_are_skipped_if_applied(rig: Rig) -> None:
    owner = Owner()
    rig.call(owner.opening(), step(1))
    taken: list[Wire] = []
    rig.during_the_next_run(
        lambda: taken.append(rig.call(owner.resume(0, first=1), step(1), step(2), step(3)))
    )
    rig.run()
    new = taken[0]
    assert new.applied == 1
    assert [sums(reply) for reply in new.replies[1:]] == [[1], [3], [6]]


def test_a_message_before_the_answer_ends_its_stream_and_not_the_session(rig: Rig) -> None:
    owner = Owner()
    rig.call(owner.opening(), step(1))
    calls: list[Wire] = []
    rig.during_the_next_run(lambda: calls.append(rig.call(owner.resume(0), step(1))))
    rig.run()
    assert "before the reply to the opening" in calls[0].ended[0]
    new = rig.call(owner.resume(0))
    assert new.applied == 1
    assert sums(new.replies[1]) == [1]


def test_a_broken_stream_is_not_mistaken_for_one_that_its_client_has_closed(rig: Rig) -> None:
    owner = Owner()
    wire = rig.call(owner.opening(), step(1))
    rig.run()
    wire.handler.on_half_close()  # so a broken call can look at first
    wire.handler.on_end(True)
    assert rig.call(owner.resume(1)).applied == 1


def test_a_message_beyond_the_window_is_the_last_that_is_read(rig: Rig) -> None:
    wire = rig.call(Owner(window=2).opening())
    assert rig.send(wire, step(1), step(2), step(3)) == [True, True, False]
    rig.run()
    assert wire.resumed
    assert [sums(reply) for reply in wire.replies[1:]] == [[1], [3], [6]]


def test_a_wrong_token_makes_the_same_work_as_an_unknown_id(
    rig: Rig, counted: Callable[[Callable[[], object]], Counter[str]]
) -> None:
    owner, nobody = Owner(), Owner()
    rig.call(owner.opening())
    owner.token = nobody.token
    wires = [rig.call() for _ in range(4)]
    openings = [asked.resume(0).SerializeToString() for asked in (owner, nobody, owner, nobody)]
    calls = [
        counted(lambda wire=wire, opening=opening: wire.handler.on_message(opening))
        for wire, opening in zip(wires, openings, strict=True)
    ]
    assert calls[2] == calls[3]
    assert calls[2]["C:openssl_sha256"] == 1
    assert all(wire.ended for wire in wires)


def test_over_the_bound_for_all_those_who_keep_most_give_way() -> None:
    room = KeptRoom(1000, 1000, 8)
    small, large, larger = (KeptReplies(100, room) for _ in range(3))
    for number in range(1, 6):
        small.add((number, 0), bytes(10))
    for number in range(1, 40):
        large.add((number, 0), bytes(10))
        larger.add((number, 0), bytes(20))
        assert room.bytes <= 1000
    replies = small.since((0, 0))
    assert replies is not None
    assert len(replies) == 5
    assert larger.since((0, 0)) is None
    assert larger.bytes >= 200
    for kept in (small, large, larger):
        kept.clear()
    assert room.bytes == 0


def test_one_session_keeps_no_more_than_its_own_bound() -> None:
    room = KeptRoom(100, 1000, 8)
    kept = KeptReplies(100, room)
    kept.add((1, 0), bytes(60))
    kept.add((2, 0), bytes(60))
    assert kept.since((0, 0)) is None
    assert [reply.place for reply in kept.since((1, 0)) or ()] == [(2, 0)]
    kept.add((3, 0), bytes(101))
    assert kept.bytes == 0
    assert kept.since((2, 0)) is None
    assert kept.since((3, 0)) == []
