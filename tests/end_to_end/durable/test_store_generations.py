"""Generations of sessions in a shared store: two servers of this process, a real Valkey."""

from __future__ import annotations

import numpy as np
import pytest

from streamcell.proto import pb
from streamcell.service.durability.told import HOLD
from streamcell.service.protocols.native.stored_session import StoredSession
from tests.support.resumable import Owner, step
from tests.support.stored import Gate, Reading, Start, mutant, opened, stored, take_away, waits_for_client
from tests.support.valkey import ValkeyServer
from tests.support.waiting import waited


@pytest.mark.parametrize("broken", [False, pytest.param(True, marks=mutant)])
def test_a_generation_of_which_the_client_knows_more_waits_for_what_it_knows(
    start: Start, shared: ValkeyServer, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, a, b = Owner(model="dice"), start("store-async"), start("store-async", "b")
    gate, raw = Gate(a), opened(a, owner)
    ask = pb.StreamRequest(generate=pb.Generate(steps=60, feedback=pb.FEEDBACK_SAMPLE, temperature=9, seed=3))
    raw.send(ask)
    first = waits_for_client(raw, stored(a, owner))
    shown = faces(raw, first)
    assert waited(lambda: stored(a, owner)._durable == (0, first))
    with gate.closed():
        raw.send(pb.StreamRequest(received=0, received_steps=first))
        faces(raw, 20)
        raw.cut()
        take_away(shared, owner)
        if broken:
            never = property(lambda _: False, lambda *_: None)
            monkeypatch.setattr(StoredSession, "awaits_message", never, raising=False)
        new = Reading(b, owner.resume(0, received_steps=first + 20))
        assert new.opened().applied_steps == first
        went_on = waited(
            lambda: stored(b, owner).live.session.step_index > first, most_s=60 if broken else 0.5
        )
        assert went_on is broken
        if broken:
            return
        # No run would choose these: the client was told of them.
        told = [(face + 1) % 4 for face in shown][:20]
        chosen = np.array([*shown, *told], "<u4").tobytes()
        ask.outcome.CopyFrom(pb.Outcome(steps=first + 20, chosen=chosen, seed=3))
        new.send(ask)
        again = faces(new, 60 - first)
    assert again[:20] == told
    assert len(again) == 60 - first


def test_a_generation_that_waits_for_its_message_can_be_stopped_and_the_session_goes_on(
    start: Start, shared: ValkeyServer
) -> None:
    owner, a = Owner(model="dice"), start("store-async")
    raw = opened(a, owner)
    ask = pb.StreamRequest(generate=pb.Generate(steps=80, feedback=pb.FEEDBACK_ARGMAX), tag=5)
    raw.send(ask)
    told = waits_for_client(raw, stored(a, owner))
    raw.cut()
    new = Reading(a, owner.resume(0, received_steps=told + 1))
    assert new.opened().applied_steps == told
    new.send(pb.StreamRequest(stop_generation=5))
    while not (reply := new.reply()).generated.stop_reason:
        pass
    assert reply.generated.stop_reason == pb.STOP_REASON_REQUEST
    new.send(ask, pb.StreamRequest(received=1), ask)  # the first one has been applied
    found = 0
    while found < 80:
        steps = new.reply().generated.steps
        found += steps
        if steps and not found % 16:
            new.send(pb.StreamRequest(received=1, received_steps=found))


def test_replies_to_a_generation_that_its_client_lacks_move_on_with_the_session(
    start: Start, shared: ValkeyServer
) -> None:
    owner = Owner(model="dice")
    servers = [start("store-async", name) for name in "abc"]
    raw = opened(servers[0], owner)
    ask = pb.StreamRequest(generate=pb.Generate(steps=20))
    raw.send(ask)
    shown = faces(raw, 20)
    assert waited(lambda: stored(servers[0], owner)._durable == (1, 0))
    raw.cut()
    for server in servers[1:]:
        take_away(shared, owner)
        again = Reading(server, owner.resume(0, received_steps=5))
        assert again.opened().applied == 1
        store = server.host.store
        assert store is not None
        assert waited(lambda store=store: not store.lag_s())
        assert faces(again, 15) == shown[5:]
        again.cut()


def test_a_generation_tells_no_more_than_it_keeps_however_often_its_client_comes_back(start: Start) -> None:
    owner, a = Owner(window=1), start("store-async")
    raw = opened(a, owner)
    ask = pb.StreamRequest(inputs=step(0).inputs, generate=pb.Generate(steps=500))
    raw.send(ask)
    session = stored(a, owner)
    waits_for_client(raw, session)
    for _ in range(4):
        raw.cut()
        raw = opened(a, owner, resume=True, received_steps=5)
        raw.send(
            ask, *[pb.StreamRequest(received=0, received_steps=5)] * 4, pb.StreamRequest(stop_generation=77)
        )
        stream = session._stream
        assert stream is not None
        assert waited(lambda stream=stream: stream.next == 2)
        told = waits_for_client(raw, session, received=5)
    assert told <= 5 + HOLD + 1
    replies = [raw.reply().step_index for _ in range(told - 5)]
    assert replies == [*range(6, told + 1)]
    raw.send(pb.StreamRequest(received=0, received_steps=replies[-1]))
    assert raw.reply().step_index == replies[-1] + 1


def test_a_generation_that_is_sent_again_is_stopped_behind_what_its_client_was_told(
    start: Start, shared: ValkeyServer
) -> None:
    owner, a, b = Owner(model="dice"), start("store-async"), start("store-async", "b")
    gate, raw = Gate(a), opened(a, owner)
    ask = pb.StreamRequest(generate=pb.Generate(steps=500), tag=5)
    assert waited(lambda: not a.host.store.lag_s())  # type: ignore[union-attr]
    with gate.closed():
        raw.send(ask)
        told = faces(raw, 30)
        raw.cut()
        take_away(shared, owner)
        new = Reading(b, owner.resume(0, received_steps=30))
        assert new.opened().applied_steps == 0
        ask.outcome.CopyFrom(pb.Outcome(steps=30, chosen=np.array(told, "<u4").tobytes()))
        new.send(ask, pb.StreamRequest(stop_generation=5))
        found: list[int] = []
        while not (reply := new.reply()).generated.stop_reason:
            found += np.frombuffer(reply.generated.chosen, "<u4").tolist()
            new.send(pb.StreamRequest(received=0, received_steps=len(found)))
    assert reply.generated.stop_reason == pb.STOP_REASON_REQUEST
    assert found[:30] == told
    assert reply.step_index == len(found) < 500


def faces(raw: Reading, count: int) -> list[int]:
    """The choices of a generation's next steps."""
    found: list[int] = []
    while len(found) < count:
        found += np.frombuffer(raw.reply().generated.chosen, "<u4").tolist()
    return found
