"""A front end keeps its clients' streams over the death of the engine process: each client sees a pause, no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamcell.proto import pb
from streamcell.service.durability.frame_entry import FrameEntry
from streamcell.service.durability.told import HOLD
from streamcell.service.processes.frontend.kept_stream import KeptStream
from streamcell.service.protocols.native.resumable import Resumable
from tests.support.frames import FrameOwner, frame
from tests.support.frontends import Eventually
from tests.support.kept_streams import WINDOW, Client, Engines, kills, received
from tests.support.resumable import Owner, step, sums

# Steps of each message; some are longer than a run of four, so they are cut.
MESSAGES = [1, 3, 7, 2, 13, 1, 1, 4, 9, 1]


# The fourth and the fifth come while the client has the same replies.
DUE = [
    (1, "ran"),
    (2, "kept"),
    (3, "committed"),
    (5, "committed"),
    (6, "ran"),
    (8, "kept"),
    (10, "committed"),
]


def fault(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What is wrong for a client that sends all messages while engine processes are killed in the middle of them."""
    due = list(DUE)
    kills(engines, monkeypatch, due)
    client = Client(engines, Owner(WINDOW).opening())
    client.opened()
    sent = total = 0
    for number, steps in enumerate(MESSAGES, 1):
        while sent < min(len(MESSAGES), number - 1 + WINDOW):
            client.send(step(*[1.0] * MESSAGES[sent]))
            sent += 1
        total += steps
        reply = client.next()
        if reply.HasField("opened"):
            return "a second greeting"
        if (sums(reply)[-1], reply.step_index, reply.steps) != (total, total, steps):
            return f"reply {number}: {sums(reply)}, {reply.step_index} steps for {total}"
    assert not due
    client.send(received(len(MESSAGES)))
    client.stream.on_half_close()
    if ended := client.ended():
        return ended
    return None if client.waits and not client.unanswered else "more than was asked for"


def test_at_each_moment_of_a_run_a_kill_loses_and_doubles_nothing(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    assert fault(engines, monkeypatch) is None
    assert eventually(lambda: not len(engines.host.sessions))


def all_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends all without a reply again, whatever has been applied."""
    send = KeptStream._send_kept
    monkeypatch.setattr(KeptStream, "_send_kept", lambda self, leg, expects: send(self, leg, 0))


def one_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes one message more for applied."""
    send = KeptStream._send_kept
    monkeypatch.setattr(
        KeptStream, "_send_kept", lambda self, leg, expects: send(self, leg, expects + bool(expects))
    )


def old_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumes from where the client began."""
    resume = KeptStream._resume

    def from_the_start(self: KeptStream) -> bytes:
        asked = pb.StreamRequest.FromString(resume(self))
        asked.open.received = max(0, asked.open.received - 1)
        return asked.SerializeToString()

    monkeypatch.setattr(KeptStream, "_resume", from_the_start)


def greets_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes on the answers to its own openings."""
    reply = KeptStream.reply

    def passed(self: KeptStream, data: bytes, *, last: bool = True) -> None:
        if self._opened is not None and not self._greeted:
            self._call.reply(data)
        reply(self, data, last=last)

    monkeypatch.setattr(KeptStream, "reply", passed)


@pytest.mark.parametrize("mutant", [all_again, one_less, old_place, greets_twice])
def test_a_front_end_that_breaks_a_rule_is_found(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mutant(monkeypatch)
    assert fault(engines, monkeypatch)


def copy(**kind: object) -> pb.StreamRequest:
    return pb.StreamRequest(copy=pb.StateCopy(**kind))  # type: ignore[arg-type]


def test_copies_are_made_at_their_place(engines: Engines) -> None:
    client, fork = Client(engines, Owner(WINDOW).opening()), Owner(WINDOW)
    client.opened()
    client.send(step(1))
    client.next()
    client.send(copy(snapshot=True))
    saved = client.next().copied.snapshot
    engines.lose()
    named = pb.Fork(session=fork.session, token=fork.token, window=WINDOW)
    client.send(step(2), copy(fork=named), step(4), copy(restore=saved))
    engines.begin()
    assert sums(client.next()) == [3]
    assert client.next().copied.applied == 2
    assert sums(client.next()) == [7]
    assert client.next().HasField("copied")
    client.send(step(1))
    assert sums(client.next()) == [2]
    assert client.unanswered == 0
    other = Client(engines, fork.resume(0))
    other.opened()
    other.send(step(1))
    assert sums(other.next()) == [4]


def test_a_copy_whose_place_is_gone_is_not_made_elsewhere(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is lost, though a message behind it is applied."""
    owner, due = Owner(WINDOW), [(2, "committed")]
    kills(engines, monkeypatch, due)
    monkeypatch.setattr(Resumable, "answer", lambda *arguments: None)
    client = Client(engines, owner.opening())
    client.opened()
    client.send(step(1), copy(snapshot=True), step(2))
    assert sums(client.next()) == [1]
    assert client.ended() == "ENGINE_LOST"
    again = Client(engines, owner.resume(1))
    assert again.opened().applied == 2
    assert sums(again.next()) == [3]


def test_a_generation_goes_on_at_its_step_and_is_stopped_meanwhile(engines: Engines) -> None:
    owner = Owner(WINDOW)
    client = Client(engines, owner.opening())
    client.opened()
    client.send(step(0.0, tag=7, generate=pb.Generate(steps=500)))

    def steps(begin: int, end: int) -> None:
        for index in range(begin + 1, end + 1):
            assert client.next().step_index == index

    steps(0, HOLD)  # then it waits until its client says that it has them
    engines.again()
    client.send(pb.StreamRequest(received=0, received_steps=20))
    steps(HOLD, 20 + HOLD)
    engines.lose()
    client.send(pb.StreamRequest(received=0, received_steps=40))
    engines.begin()
    steps(20 + HOLD, 40 + HOLD)
    engines.lose()
    client.send(pb.StreamRequest(stop_generation=7), step(1))
    engines.begin()
    told, index = client.next(), 40 + HOLD
    while not told.generated.stop_reason:  # a step may run while it comes to wait
        index += 1
        assert told.step_index == index
        told = client.next()
    assert told.generated.stop_reason == pb.STOP_REASON_REQUEST
    assert client.next().step_index == index + 1
    assert client.unanswered == 0


def test_a_kept_stream_acknowledges_no_reply_that_its_client_may_lack(engines: Engines) -> None:
    owner = Owner(WINDOW)
    client = Client(engines, owner.opening())
    client.opened()
    client.send(step(0.0, generate=pb.Generate(steps=500)))
    for index in range(1, HOLD + 1):
        assert client.next().step_index == index
    engines.again()
    client.send(pb.StreamRequest(received=0, received_steps=5))
    for index in range(HOLD + 1, HOLD + 6):
        assert client.next().step_index == index
    client.leave()  # with a connection on which all behind the fifth reply was lost
    again = Client(engines, owner.resume(0, received_steps=5))
    again.opened()
    assert [again.next().step_index for _ in range(HOLD)] == list(range(6, HOLD + 6))


def frames_fault(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What is wrong for a client of frames whose engine process is killed around the commits of two of them."""
    keep, commit, due = FrameEntry.keep, FrameEntry.commit, [3, 5]

    def kept(self: FrameEntry, number: int, *arguments: Any) -> None:
        keep(self, number, *arguments)
        if due == [number]:
            due.pop()
            engines.kill_and_begin()

    def committed(self: FrameEntry, row: int, number: int, *arguments: Any) -> None:
        commit(self, row, number, *arguments)
        if due[:1] == [number] and len(due) == 2:
            due.pop(0)
            engines.kill_and_begin()

    monkeypatch.setattr(FrameEntry, "keep", kept)
    monkeypatch.setattr(FrameEntry, "commit", committed)
    client = Client(engines, FrameOwner(WINDOW).opening())
    client.opened()
    client.send(frame(open_sessions=2))
    client.next()
    for first in (1, 4):  # three frames ahead
        for x in range(first, first + 3):
            client.send(frame((0, x), (1, 10 * x)))
        for x in range(first, first + 3):
            total = x * (x + 1) // 2
            if (found := sums(client.next())) != [total, 10 * total]:
                return f"{found} for {total}"
    assert not due
    client.send(pb.FrameRequest(received=7))
    client.stream.on_half_close()
    return client.ended() or (None if not client.unanswered else "more than was asked for")


def test_a_stream_of_frames_is_kept_with_all_its_sessions(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    assert frames_fault(engines, monkeypatch) is None
    assert eventually(lambda: not len(engines.host.sessions))


def test_frames_that_are_sent_again_though_they_are_applied_are_found(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_again(monkeypatch)
    assert frames_fault(engines, monkeypatch)
