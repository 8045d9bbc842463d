"""What a client keeps of a session in a shared store, and sends again, whatever breaks: without transport."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import grpc
import numpy as np
import pytest

from streamcell.client import (
    MessageTooLarge,
    ServerFault,
    SessionMoved,
    StateBehind,
    StreamCellError,
    Ticket,
)
from streamcell.client.errors import from_reason
from streamcell.client.protocol.held import Held, HeldMessages
from streamcell.client.protocol.resume import Resumption
from streamcell.proto import pb
from tests.support.small_store import Image, Refused, Replica, SmallStore, stepped

MESSAGES = 40
RETAIN_BYTES = 700


class World:
    """One client, its replicas and their store; `chance` says what happens next."""

    def __init__(self, seed: int, level: str = "store-async", window: int = 4) -> None:
        self.chance = random.Random(seed)
        self.store = SmallStore()
        self.level, self.window = level, window
        self.client = Resumption(30.0, window=window, retain_bytes=RETAIN_BYTES)
        self.shown: list[pb.StreamResponse] = []
        self.sent: list[pb.StreamRequest] = []
        self.behind = 0  # openings at a replica that lacked what the client had
        self.open()

    def open(self, live: Image | None = None) -> None:
        """Go on with another replica, which has what the store has; or with the same one, which has `live`."""
        self.replica = Replica(self.store, random.Random(self.chance.random()), self.level, self.window)
        opening = pb.OpenSession.FromString(self.client.opening(pb.OpenSession()).SerializeToString())
        greeting, *replies = self.replica.open(opening, live)
        image = self.replica.image
        place = (opening.received, opening.received_steps)
        self.behind += (image.applied, image.told) < place
        self.client.greeted(greeting)
        self.client.reopened(greeting.opened)
        self.to_server: deque[Any] = deque()
        self.to_client: deque[Any] = deque(replies)
        self.write()

    def write(self) -> None:
        """What the client has to send goes out."""
        self.to_server.extend(
            pb.StreamRequest.FromString(each.SerializeToString()) for each in self.client.due()
        )
        assert self.client._held._bytes <= RETAIN_BYTES

    def ask(self) -> None:
        """The client's caller sends another message, if it may."""
        number = len(self.sent) + 1
        inputs = [np.array(self.chance.choices(range(1, 9), k=self.chance.choice((1, 3))), "<i8").tobytes()]
        request = pb.StreamRequest(inputs=inputs, tag=number)
        if self.chance.random() < 0.3:
            steps, each = self.chance.choice(((1, 1), (9, 1), (70, 1), (20, 6)))
            request = pb.StreamRequest(
                inputs=[inputs[0][:8]], tag=number, generate=pb.Generate(steps=steps, steps_per_reply=each)
            )
        if self.chance.random() < 0.1:
            kept = np.array([self.chance.randrange(1000), self.chance.randrange(50)], "<i8").tobytes()
            request = pb.StreamRequest(copy=pb.StateCopy(restore=kept))
        if self.sent and self.sent[-1].HasField("copy") and self.client.received < len(self.sent):
            return  # nothing behind a restore before its reply
        self.client.check(request)
        if len(self.sent) < MESSAGES and self.client.has_room(request):
            self.sent.append(request)
            self.client.put(request)
            self.write()

    def stop(self) -> None:
        """The caller stops the latest generation."""
        if self.sent and self.sent[-1].HasField("generate") and self.client.received < len(self.sent):
            self.client.put(pb.StreamRequest(stop_generation=len(self.sent)))
            self.write()

    def read(self) -> None:
        """The replica reads."""
        if self.to_server:
            self.replica.take(self.to_server.popleft())

    def run(self) -> None:
        """The replica runs something, and tells what is stored beside the reply."""
        if self.replica.busy:
            reply = pb.StreamResponse()
            reply.CopyFrom(self.replica.run())
            if self.chance.random() < 0.5 and (durable := self.replica.durable()) is not None:
                reply.durable = durable
            self.to_client.append(reply)

    def put(self) -> None:
        """The store takes what the replica has."""
        self.replica.put()

    def tell(self) -> None:
        """The replica tells alone what is stored."""
        if (durable := self.replica.durable()) is not None:
            self.to_client.append(pb.StreamResponse(durable=durable))

    def receive(self) -> None:
        """A reply arrives."""
        if self.to_client:
            self.client.took(self.to_client.popleft())
            self.write()
            while self.client.early:
                self.shown.append(self.client.early.popleft())

    def kill(self) -> None:
        """The replica is lost, with all that the store does not have and all that is on its way."""
        self.open()

    def cut(self) -> None:
        """The connection is lost, and the replica lives on."""
        while self.to_server and self.chance.random() < 0.5:
            self.read()
        while self.replica.busy and self.chance.random() < 0.7:
            self.replica.run()
        self.open(self.replica.image)

    def move(self) -> None:
        """The replica stores the session, and says that it goes on elsewhere."""
        self.replica.put()
        with pytest.raises(SessionMoved):
            self.client.took(pb.StreamResponse(moved=pb.Moved()))
        self.open()

    def live(self) -> None:
        """Do everything, in any order, until every message is answered; then the history is whole."""
        usual = [self.ask, self.read, self.run, self.run, self.receive, self.receive]
        rare = [self.put, self.tell, self.stop, self.kill, self.move, self.cut]
        for turn in range(20_000):
            if self.client.received == MESSAGES:
                break
            calm = turn > 3000  # then no more faults: it must come to its end
            faults = rare[:2] if calm else rare
            action = self.chance.choice(faults if self.chance.random() < 0.2 else usual)
            action()
        assert self.client.received == MESSAGES, "it has come to rest before its end"
        self.check()

    def check(self) -> None:
        """What was shown is one history: each step once, in order, and nothing contradicts what was shown before."""
        state = steps = 0
        replies = iter(self.shown)
        for request in self.sent:
            if request.HasField("copy"):
                state, steps = np.frombuffer(request.copy.restore, "<i8").tolist()
                reply = next(replies)
                assert reply.HasField("copied")
                assert reply.step_index == steps
                continue
            given = np.frombuffer(request.inputs[0], "<i8").tolist()
            if not request.HasField("generate"):
                expected = []
                for x in given:
                    state = stepped(state, x)
                    expected.append(state)
                reply = next(replies)
                assert np.frombuffer(reply.outputs[0], "<i8").tolist() == expected
                steps += len(given)
                assert reply.step_index == steps
                continue
            x, reply = given[0], pb.StreamResponse()
            while not reply.generated.stop_reason:
                reply = next(replies)
                outputs = np.frombuffer(reply.outputs[0], "<i8").tolist() if reply.steps else []
                chosen = np.frombuffer(reply.generated.chosen, "<u4").tolist()
                assert len(outputs) == len(chosen) == reply.generated.steps
                for y, choice in zip(outputs, chosen, strict=True):
                    state = stepped(state, x)
                    assert y == state
                    x = choice
                steps += len(chosen)
                assert reply.step_index == steps
        assert next(replies, None) is None
        assert (self.replica.image.state, self.replica.image.step_index) == (state, steps)


@pytest.mark.parametrize("window", [1, 4, 32])
def test_no_output_is_lost_doubled_or_contradicted_whatever_breaks(window: int) -> None:
    behind = resent = 0
    for seed in range(12):
        world = World(seed, window=window)
        world.live()
        behind += world.behind
        resent += world.client.resent
        assert bool(world.client.resent) == bool(world.behind)
    assert behind > 20
    assert resent > 40


def test_a_session_at_store_sync_is_never_behind_and_keeps_nothing() -> None:
    for seed in range(5):
        world = World(seed, "store-sync")
        world.live()
        assert world.behind == world.client.resent == 0
        assert not world.client._held.told


def live_all(seeds: range) -> None:
    """Live through all the worlds of these seeds."""
    for seed in seeds:
        World(seed).live()


def forgets(held: HeldMessages, kept: int) -> None:
    """A client that drops what is received, not what is stored."""
    held.told.clear()


def repeats(held: Held) -> Any:
    """A client that sends a message again without what it has come to."""
    return held.request


@pytest.mark.parametrize(
    ("owner", "method", "mutant"), [(HeldMessages, "forget", forgets), (Held, "again", repeats)]
)
def test_a_client_that_keeps_too_little_is_caught(
    owner: type, method: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, mutant)
    with pytest.raises((Refused, AssertionError, StateBehind)):
        live_all(range(20))


def opened(client: Resumption, replica: Replica) -> list[Any]:
    """Open the session on `replica`; the replies that follow."""
    greeting, *replies = replica.open(client.opening(pb.OpenSession()))
    client.greeted(greeting)
    client.reopened(greeting.opened)
    return replies


def step(x: int, *more: int) -> pb.StreamRequest:
    return pb.StreamRequest(inputs=[np.array((x, *more), "<i8").tobytes()])


def answer(client: Resumption, replica: Replica, request: Any) -> None:
    """Send a message, and take the reply."""
    client.put(request)
    for each in client.due():
        replica.take(each)
    client.took(replica.run())
    client.early.popleft()


def test_sending_waits_for_the_store_beyond_the_bytes_to_retain_and_larger_messages_are_refused() -> None:
    client = Resumption(30.0, retain_bytes=100)
    replica = Replica(SmallStore(), random.Random(1), window=32)
    opened(client, replica)
    size = step(1).ByteSize()
    while client.has_room(step(1)):
        answer(client, replica, step(1))
    assert client.received == 100 // size
    assert client.waits_for_store
    replica.put()
    client.took(pb.StreamResponse(durable=replica.durable()))
    assert client.durable == client.received
    assert client.has_room(step(1))
    with pytest.raises(
        MessageTooLarge, match="takes 106 bytes, and the session keeps at most 100 until its store"
    ):
        client.check(step(*range(13)))
    with pytest.raises(MessageTooLarge, match="this generation with all that it may choose takes"):
        client.check(pb.StreamRequest(generate=pb.Generate(steps=30)))
    client.check(pb.StreamRequest(generate=pb.Generate(steps=30, beam=pb.BeamSearch(width=2))))


def test_a_ticket_holds_no_messages_so_a_replica_behind_it_is_refused_by_both_ends() -> None:
    client, store = Resumption(30.0), SmallStore()
    replica = Replica(store, random.Random(1))
    opened(client, replica)
    answer(client, replica, step(1))
    late = Resumption(30.0, client.ticket())
    opening = late.opening(pb.OpenSession())
    assert (opening.received, opening.held) == (1, 2)
    with pytest.raises(Refused, match="STATE_BEHIND"):
        Replica(store, random.Random(1)).open(opening)
    with pytest.raises(StateBehind) as behind:
        late.reopened(pb.SessionOpened(window=4, durability=pb.DURABILITY_STORE_ASYNC))
    assert behind.value.metadata == {"applied": "0", "received": "1"}


def test_a_ticket_of_a_generation_that_the_store_has_less_of_is_refused_too() -> None:
    late = Resumption(30.0, Ticket("00" * 16, "00" * 32, received=3, received_steps=9))
    with pytest.raises(StateBehind, match="applied 5 timesteps of message 4, 9 were told"):
        late.reopened(
            pb.SessionOpened(
                window=4, durability=pb.DURABILITY_STORE_ASYNC, applied=3, applied_steps=5, generating=1
            )
        )


HOSTILE = {
    "stored beyond what was sent": pb.StreamResponse(durable=2**64 - 1),
    "a reply to nothing": pb.StreamResponse(step_index=1, steps=1),
    "a generation of nothing": pb.StreamResponse(generated=pb.Generated(steps=5)),
    "another step than before": pb.StreamResponse(step_index=9, durable=0),
}


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE)
def test_what_no_server_of_ours_says_is_a_typed_fault(reply: pb.StreamResponse) -> None:
    client, store = Resumption(30.0), SmallStore()
    replica = Replica(store, random.Random(1))
    opened(client, replica)
    answer(client, replica, step(1))
    if reply.step_index == 9:
        opened(client, Replica(store, random.Random(1)))
        assert client.resent == 1
    with pytest.raises(ServerFault) as fault:
        client.took(reply)
    assert fault.value.reason == "MALFORMED_REPLY"
    assert client.pause_s(fault.value) is None


def test_more_steps_than_were_asked_for_are_not_kept() -> None:
    client = Resumption(30.0)
    opened(client, Replica(SmallStore(), random.Random(1)))
    client.put(pb.StreamRequest(generate=pb.Generate(steps=3)))
    with pytest.raises(ServerFault, match="3 timesteps were to be generated, the server has told 100"):
        client.took(
            pb.StreamResponse(step_index=100, generated=pb.Generated(steps=100, chosen=b"1234" * 100))
        )


def test_windows_that_no_client_has_asked_for_are_refused() -> None:
    with pytest.raises(ServerFault):
        Resumption(30.0).reopened(pb.SessionOpened(window=2**32 - 1, applied=2**60))


def lost(code: grpc.StatusCode, reason: str = "") -> StreamCellError:
    return from_reason(code, reason or code.name, "", {})


def test_a_session_that_moves_in_a_loop_ends_with_that_error() -> None:
    now_s = [0.0]
    client = Resumption(5.0, now_s=lambda: now_s[0])
    replica, tries = Replica(SmallStore(), random.Random(1)), 0
    opened(client, replica)
    while True:
        with pytest.raises(SessionMoved) as moved:
            client.took(
                pb.StreamResponse(moved=pb.Moved(replica="x" * 10**6, address="y" * 10**6), durable=0)
            )
        pause_s = client.pause_s(moved.value)
        if pause_s is None:
            break
        assert bool(pause_s) == bool(tries)  # at once, and then after pauses
        tries += 1
        now_s[0] += pause_s
        opened(client, replica)
    assert 4 < tries < 50
    assert client.way.moves == tries + 1
    assert dict(client.way.metadata()).keys() == {"streamcell-session"}
    assert moved.value.reason == "SESSION_MOVED"


@pytest.mark.parametrize("code", [each for each in grpc.StatusCode if each is not grpc.StatusCode.OK])
def test_any_status_without_a_reason_means_that_the_stream_of_a_session_is_lost(
    code: grpc.StatusCode,
) -> None:
    client = Resumption(30.0)
    wrong_target = client.pause_s(lost(code)) is None
    assert wrong_target == (code.name not in {"UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN"})
    opened(client, Replica(SmallStore(), random.Random(1)))
    ends = client.pause_s(lost(code)) is None
    assert ends == (code is grpc.StatusCode.DEADLINE_EXCEEDED)  # a time limit of this end
    assert client.pause_s(lost(code, "MODEL_NOT_FOUND")) is None


@pytest.mark.parametrize(
    "reason", ["SESSION_MOVED", "SESSION_ELSEWHERE", "STORE_UNAVAILABLE", "SERVER_DRAINING"]
)
def test_a_session_in_a_store_goes_on_after_what_its_servers_say_of_themselves(reason: str) -> None:
    client = Resumption(30.0)
    opened(client, Replica(SmallStore(), random.Random(1)))
    assert client.pause_s(lost(grpc.StatusCode.UNAVAILABLE, reason)) == 0.0
    full = lost(grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_LIMIT")
    assert client.pause_s(full) is None
    full.retry_after_s = 3.0  # no room there now, and the store keeps the state
    assert client.pause_s(full) == 3.0
