"""Steps, forks, snapshots, rewinds and takeovers in random order, held against a few lines of Python.

Messages are sent ahead, and a stream may be taken over while they wait or run. The reference keeps a session's sum and
step index behind each of its messages; whatever is copied must be what they were at the number that the reply names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streamcell.proto import pb
from tests.support.resumable import Owner, save_sum, step, sums

from .test_resumable import Call
from .test_state_copies import Copying, copy, fork_of

ACTIONS = 120


class State(NamedTuple):
    """A session's state as the reference has it."""

    sum: float = 0.0
    steps: int = 0


class Asked(NamedTuple):
    """A copy without a number that waits for its answer; `owner`: the fork's, None for a snapshot."""

    number: int  # messages sent before
    owner: Owner | None
    message: pb.StreamRequest


class Reference:
    """One session: its states by number, what is sent and not answered, and the call that it is on."""

    def __init__(self, owner: Owner, wire: Call, begins: State) -> None:
        self.owner = owner
        self.wire = wire
        self.read = 0  # replies of this call that were looked at
        self.states = [begins]  # behind message 0, 1, …
        self.messages: list[pb.StreamRequest] = []
        self.waits: list[Asked | int] = []  # in the order of their replies; a number for a message

    @property
    def sent(self) -> int:
        return len(self.messages)


class World:
    """All sessions on one server."""

    def __init__(self, rig: Copying, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.snapshots: list[tuple[bytes, State]] = []
        self.forks: list[tuple[Owner, list[State]]] = []
        self.sessions: list[Reference] = []
        self.copies = 0
        self.open(Owner(window=8), State())

    def open(self, owner: Owner, begins: State, **fields: Any) -> None:
        wire = self.rig.call(owner.opening(**fields))
        (opened,) = self.rig.settle(wire, 1)
        assert opened.opened.step_index == begins.steps
        session = Reference(owner, wire, begins)
        session.read = 1
        self.sessions.append(session)

    def send(self, session: Reference, message: pb.StreamRequest, after: State) -> None:
        session.messages.append(message)
        session.states.append(after)
        session.waits.append(session.sent)
        self.rig.send(session.wire, message)

    def ask(self, session: Reference, asked: Asked) -> None:
        session.waits.append(asked)
        self.rig.send(session.wire, asked.message)

    def look(self, session: Reference) -> None:
        """Wait for all replies, and hold each against the reference."""
        replies = self.rig.settle(session.wire, session.read + len(session.waits))[session.read :]
        session.read += len(replies)
        waits, session.waits = session.waits, []
        for waited, reply in zip(waits, replies, strict=True):
            if isinstance(waited, int):
                after = session.states[waited]
                assert reply.step_index == after.steps
                assert not reply.copied.error.reason
                if not reply.HasField("copied"):
                    assert sums(reply)[-1] == after.sum
                continue
            assert not reply.copied.error.reason
            assert reply.copied.applied == waited.number, "the copy is not at its place"
            state = session.states[waited.number]
            assert reply.step_index == state.steps
            if waited.owner is None:
                self.snapshots.append((reply.copied.snapshot, state))
            else:
                self.forks.append((waited.owner, [state]))
            self.copies += 1

    def take_over(self, session: Reference) -> None:
        """Another stream, while messages wait or run; what is not applied is sent again, and asked again."""
        if self.random.random() < 0.5:
            self.rig.flush()
        had = [each for each in session.waits if isinstance(each, int)]
        received = session.sent - len(had)
        wire = self.rig.call(session.owner.resume(received))
        opened = self.rig.at_least(wire, 1)[0].opened
        applied = opened.applied
        assert received <= applied <= session.sent
        assert opened.step_index == session.states[applied].steps
        asked = [each for each in session.waits if isinstance(each, Asked)]
        session.wire, session.read = wire, 1
        session.waits = list(range(received + 1, applied + 1))  # kept replies, sent again
        for number in range(applied + 1, session.sent + 1):
            session.waits.append(number)
            self.rig.send(wire, session.messages[number - 1])
        for each in asked:  # a fork may have been made before, at any number since it was first asked for
            if each.owner is None:
                self.ask(session, Asked(session.sent, None, each.message))
        self.look(session)
        for each in asked:
            if each.owner is not None:
                self.rig.send(wire, each.message)
                reply = self.rig.settle(wire, session.read + 1)[-1]
                session.read += 1
                assert not reply.copied.error.reason
                self.forks.append((each.owner, session.states[each.number : session.sent + 1]))

    def adopt_fork(self) -> None:
        owner, could = self.forks.pop(self.random.randrange(len(self.forks)))
        wire = self.rig.call(owner.resume(0), step(0.0))
        opened, reply = self.rig.settle(wire, 2)
        begun = State(sums(reply)[0], opened.opened.step_index)
        assert begun in could
        session = Reference(owner, wire, begun)
        session.read = 2
        session.messages.append(step(0.0))
        session.states.append(State(begun.sum, begun.steps + 1))
        self.sessions.append(session)

    def act(self) -> None:
        session = self.random.choice(self.sessions)
        last = session.states[-1]
        room = len(session.waits) < session.owner.window
        action = self.random.choice(
            ["step", "step", "step", "fork", "snapshot", "rewind", "take over", "look", "open"]
        )
        if action == "step" and room:
            x = [float(self.random.randrange(9)) for _ in range(self.random.randrange(1, 7))]
            self.send(session, step(*x), State(last.sum + sum(x), last.steps + len(x)))
        elif action == "fork" and room and len(self.sessions) + len(self.forks) < 12:
            fork = Owner(window=8)
            self.ask(session, Asked(session.sent, fork, fork_of(fork)))
        elif action == "snapshot" and room:
            self.ask(session, Asked(session.sent, None, copy(snapshot=True)))
        elif action == "rewind" and self.snapshots:
            self.look(session)
            snapshot, state = self.random.choice(self.snapshots)
            self.send(session, copy(restore=snapshot), state)
            if self.random.random() < 0.5:
                self.take_over(session)
            self.look(session)
        elif action == "take over":
            self.take_over(session)
        elif action == "open" and self.forks:
            self.adopt_fork()
        elif action == "open" and self.snapshots and len(self.sessions) < 12:
            snapshot, state = self.random.choice(self.snapshots)
            self.open(Owner(window=8, model=""), state, snapshot=snapshot)
        else:
            self.look(session)


@pytest.fixture(params=[{}, {"slots": 2}], ids=["a row each", "more sessions than rows"])
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Copying]:
    made = Copying(save_sum(tmp_path), **request.param)
    yield made
    made.flush()
    made.stop()


@pytest.mark.parametrize("seed", range(4))
def test_every_copy_is_what_the_reference_says(rig: Copying, seed: int) -> None:
    world = World(rig, seed)
    for _ in range(ACTIONS):
        world.act()
    for session in world.sessions:
        world.look(session)
    assert len(world.sessions) > 1
    assert world.copies > 5
    assert not any(session.wire.ends for session in world.sessions)
