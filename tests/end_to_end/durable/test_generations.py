"""Generations of resumable sessions go on at the step at which their stream broke, and wait for their client."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from streamcell.service.protocols.native.journal_place import HOLD
from tests.support.resumable import Owner, Raw, step, sums

States = Callable[[ServerProcess], dict[str, str]]
Eventually = Callable[[Callable[[], bool]], bool]
ONE = step(1).inputs


def generate(steps: int, **fields: int) -> pb.StreamRequest:
    """Sums double from 1 on."""
    return pb.StreamRequest(inputs=ONE, generate=pb.Generate(steps=steps, **fields), tag=9)


def powers(first: int, last: int) -> list[float]:
    return [2.0**step for step in range(first - 1, last)]


def acknowledged(number: int, steps: int) -> pb.StreamRequest:
    return pb.StreamRequest(received=number, received_steps=steps)


def step_index(server: ServerProcess, owner: Owner) -> int:
    """How far the session is, once the engine has had time to take it further."""
    with connect(server.target) as client, client.session("sum") as other:
        for _ in range(50):
            other.step([0.0])
        (mine,) = [each for each in client.sessions("sum") if each.id == owner.id]
    return mine.step_index


@pytest.mark.conformance
def test_a_generation_goes_on_where_its_stream_broke(
    server: ServerProcess, states: States, eventually: Eventually
) -> None:
    owner = Owner(window=1)
    raw = Raw(server.target, owner.opening(), generate(100))
    raw.opened()
    assert [value for reply in raw.replies(20) for value in sums(reply)] == powers(1, 20)
    raw.cut()
    assert eventually(lambda: states(server).get(owner.id) == "detached")
    again = Raw(server.target, owner.resume(0, received_steps=20))
    opened = again.opened()
    assert opened.applied == 0
    assert 20 <= opened.applied_steps <= HOLD + 2
    # Sent again as every unanswered message is, it is not begun again.
    again.send(generate(100))
    found = []
    while len(found) < 80:
        reply = again.reply()
        found += sums(reply)
        if len(found) % 32 == 0:
            again.send(acknowledged(0, 20 + len(found)))
    assert found == powers(21, 100)
    assert reply.generated.stop_reason == pb.STOP_REASON_STEPS
    assert reply.step_index == 100
    again.send(step(0))
    assert sums(again.reply()) == powers(100, 100)


def test_a_generation_waits_for_its_client_to_say_what_it_has(server: ServerProcess) -> None:
    owner = Owner(window=1)
    raw = Raw(server.target, owner.opening(), generate(100))
    raw.opened()
    raw.replies(HOLD)
    assert step_index(server, owner) <= HOLD + 2
    # A stop is read though the window is full, and the generation ends where it stands.
    raw.send(pb.StreamRequest(stop_generation=9))
    while not (reply := raw.reply()).generated.stop_reason:
        pass
    assert reply.generated.stop_reason == pb.STOP_REASON_REQUEST
    assert reply.step_index <= HOLD + 2


def zeros(steps: int) -> pb.StreamRequest:
    """Sums stay 0 for ever, where those that double are infinite after 128 steps."""
    return pb.StreamRequest(inputs=step(0).inputs, generate=pb.Generate(steps=steps), tag=9)


def test_an_opening_acknowledges_what_it_says_that_its_client_has(server: ServerProcess) -> None:
    owner = Owner(window=1)
    raw = Raw(server.target, owner.opening(), zeros(500))
    raw.opened()
    raw.replies(HOLD)
    raw.cut()  # and with it, perhaps, went an acknowledgement: its client sends none for a while
    again = Raw(server.target, owner.resume(0, received_steps=HOLD))
    again.opened()
    again.send(zeros(500))
    assert [reply.step_index for reply in again.replies(HOLD)] == [*range(HOLD + 1, 2 * HOLD + 1)]
    assert step_index(server, owner) <= 2 * HOLD + 3


def test_an_opening_acknowledges_nothing_that_was_not_told(server: ServerProcess) -> None:
    owner = Owner(window=1)
    raw = Raw(server.target, owner.opening(), zeros(500))
    raw.opened()
    raw.replies(HOLD)
    raw.cut()
    again = Raw(server.target, owner.resume(0, received_steps=10 * HOLD))
    applied = again.opened().applied_steps
    assert applied <= HOLD + 2
    again.send(zeros(500))
    assert [reply.step_index for reply in again.replies(HOLD)] == [*range(applied + 1, applied + HOLD + 1)]
    assert step_index(server, owner) <= applied + HOLD + 3


def test_a_reply_of_more_steps_than_it_waits_for_is_sent(server: ServerProcess) -> None:
    raw = Raw(server.target, Owner(window=1).opening(), generate(100, steps_per_reply=90))
    raw.opened()
    assert [value for reply in raw.replies(2) for value in sums(reply)] == powers(1, 100)


def test_what_was_not_begun_is_begun_by_the_stream_that_sends_it_again(server: ServerProcess) -> None:
    owner = Owner()
    raw = Raw(server.target, owner.opening(), generate(100), step(1))
    raw.opened()
    raw.replies(1)
    again = Raw(server.target, owner.resume(0, received_steps=1))
    again.opened()
    again.send(generate(100), pb.StreamRequest(stop_generation=9), step(0))
    replies = []
    while not replies or replies[-1].HasField("generated"):
        replies.append(again.reply())
    found = [value for reply in replies[:-1] for value in sums(reply)]
    assert found == powers(2, len(found) + 1)
    assert sums(replies[-1]) == found[-1:]
