"""A second implementation of sessions in a shared store, small and in plain Python: replicas and their store.

The model is `state = 31 * state + x mod 2**31 - 1`, so a step that is lost or done twice shows for ever. Its
generations choose at random, each replica otherwise: only who is told what was chosen can repeat it.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcell.proto import pb

MODULUS = 2**31 - 1
HOLD = 64  # unacknowledged replies of a generation
LEVELS = {"store-async": pb.DURABILITY_STORE_ASYNC, "store-sync": pb.DURABILITY_STORE_SYNC}


def stepped(state: int, x: int) -> int:
    """The state after a step."""
    return (31 * state + x) % MODULUS


@dataclass
class Image:
    """What a replica has of a session, and the store of its past.

    Attributes:
        applied: messages whose last reply is kept.
        told: timesteps told of the next message, a generation.
        replies: the kept ones, with the place behind each.
        running: that generation's message, and the input of its next step.
    """

    applied: int = 0
    told: int = 0
    state: int = 0
    step_index: int = 0
    replies: list[tuple[int, int, Any]] = field(default_factory=list)
    running: tuple[Any, int] | None = None


class Refused(Exception):
    """An opening that a replica refuses: a reason, and facts."""

    def __init__(self, reason: str, **facts: str) -> None:
        super().__init__(reason)
        self.reason, self.facts = reason, facts


class SmallStore:
    """The last images that were put, by session."""

    def __init__(self) -> None:
        self.images: dict[bytes, Image] = {}
        self.attempts: dict[bytes, int] = {}


class Replica:
    """One session on one replica, and its latest stream. Nothing happens by itself: a test says what comes next.

    Attributes:
        image: of the session.
        told_durable: the last number that its client was told.
    """

    def __init__(
        self, store: SmallStore, chance: random.Random, level: str = "store-async", window: int = 4
    ) -> None:
        self.store, self.chance, self.window = store, chance, window
        self.level = LEVELS[level]
        self.address = self.name = ""

    def open(self, asked: pb.OpenSession, live: Image | None = None) -> list[pb.StreamResponse]:
        """Take the session from the store, or make it; its greeting, and the replies that its client lacks.

        `live`: what this replica has of it, which is not lost.

        Raises:
            Refused: it cannot go on with what its client has.
        """
        store, self.session = self.store, asked.session
        if asked.attempt <= store.attempts.get(asked.session, 0):
            raise Refused("SESSION_TAKEN_OVER")
        if asked.resume and asked.session not in store.images:
            raise Refused("SESSION_NOT_FOUND")
        store.attempts[asked.session] = self.attempt = asked.attempt
        stored = store.images.setdefault(asked.session, Image())
        self.image = image = live or copy.deepcopy(stored)
        if image.applied + 1 < asked.held:
            raise Refused("STATE_BEHIND", applied=str(image.applied), received=str(asked.received))
        if image.applied > asked.received + self.window:
            raise Refused("REPLIES_GONE", applied=str(image.applied))
        self.read = image.applied + bool(image.running)  # the number of the last message
        self.next = image.applied + 1  # of the next one on this stream
        self.answered = image.applied
        self.waiting: deque[Any] = deque()
        self.unacknowledged = 0
        self.stopped = self.restoring = False
        # Its client was told more of the generation than the store has: it goes on once its message has come again.
        self.knows_less = image.running is not None and (asked.received, asked.received_steps) > (
            image.applied,
            image.told,
        )
        self.told_durable = stored.applied
        opened = pb.SessionOpened(
            session_id=asked.session.hex(),
            model="small",
            inputs=[pb.TensorSpec(name="x", dtype="int64", step_shape=[1])],
            outputs=[pb.TensorSpec(name="y", dtype="int64", step_shape=[1])],
            max_steps_per_message=64,
            generation=pb.GenerationSpec(
                output="y", input="x", head="categorical", encoding="index", max_steps=1 << 20
            ),
            applied=image.applied,
            applied_steps=image.told,
            step_index=image.step_index,
            durability=self.level,
            window=self.window,
            durable=stored.applied,
            replica=self.name,
            address=self.address,
        )
        if image.running is not None:
            opened.generating = image.running[0].tag
        lacked = [
            reply
            for number, steps, reply in image.replies
            if (number, steps or 1 << 40) > (asked.received + 1, asked.received_steps)
            or number > asked.received + 1
        ]
        return [pb.StreamResponse(opened=opened), *lacked]

    def take(self, request: pb.StreamRequest) -> None:
        """Read a message of the stream."""
        if request.HasField("received"):
            self.unacknowledged = 0
        elif request.HasField("stop_generation"):
            self.stopped = (
                self.image.running is not None and self.image.running[0].tag == request.stop_generation
            )
        else:
            number, self.next = self.next, self.next + 1
            assert number - self.answered <= self.window, "the client has sent beyond its window"
            assert not self.restoring, "the client has sent something behind a restore, before its reply"
            if number > self.read:
                self.read = number
                self.restoring = request.HasField("copy")
                self.waiting.append(request)
            elif self.knows_less and number == self.image.applied + 1 and self.image.running is not None:
                self.image.running, self.knows_less = (request, self.image.running[1]), False

    @property
    def busy(self) -> bool:
        """True if `run` has something to do."""
        held = self.image.running is not None and (self.knows_less or self.unacknowledged >= HOLD)
        return not held and (self.image.running is not None or bool(self.waiting))

    def run(self) -> pb.StreamResponse:
        """Run the next message, or the next steps of a generation; the reply."""
        image = self.image
        if image.running is None:
            request = self.waiting.popleft()
            if request.HasField("copy"):
                self.restoring = False
                image.state, image.step_index = np.frombuffer(request.copy.restore, "<i8").tolist()
                copied = pb.StateCopied(applied=image.applied + 1)
                return self._keep(pb.StreamResponse(copied=copied, step_index=image.step_index), 0)
            if not request.HasField("generate"):
                return self._keep(self._steps(request), 0)
            self.stopped = False
            image.running = request, int(np.frombuffer(request.inputs[0], "<i8")[0])
        request, x = image.running
        outcome, wanted = request.outcome, request.generate
        known = image.told < outcome.steps
        most = min(wanted.steps_per_reply or 1, (outcome.steps if known else wanted.steps) - image.told, HOLD)
        steps = self.chance.randint(1, max(most, 1)) if not known else most
        outputs, chosen = [], []
        for place in range(image.told, image.told + steps):
            image.state = stepped(image.state, x)
            outputs.append(image.state)
            x = (
                int(np.frombuffer(outcome.chosen, "<u4")[place])
                if place < outcome.steps
                else self.chance.randrange(4)
            )
            chosen.append(x)
        image.step_index += steps
        begin, end = image.told, image.told + steps
        done = outcome.stop_reason if end == outcome.steps else pb.STOP_REASON_UNSPECIFIED
        if not done and end >= outcome.steps:
            stopped = pb.STOP_REASON_REQUEST if self.stopped else pb.STOP_REASON_UNSPECIFIED
            done = pb.STOP_REASON_STEPS if end == wanted.steps else stopped
        reply = pb.StreamResponse(
            outputs=[np.array(outputs, "<i8").tobytes()],
            steps=steps,
            step_index=image.step_index,
            tag=request.tag,
            generated=pb.Generated(
                steps=steps,
                chosen=np.array(chosen, "<u4").tobytes(),
                stop_reason=done,
                seed=0 if begin else 7,
            ),
        )
        image.running = None if done else (request, x)
        self.unacknowledged += 1
        return self._keep(reply, 0 if done else end)

    def _steps(self, request: pb.StreamRequest) -> pb.StreamResponse:
        image, outputs = self.image, []
        for x in np.frombuffer(request.inputs[0], "<i8"):
            image.state = stepped(image.state, int(x))
            outputs.append(image.state)
        image.step_index += len(outputs)
        return pb.StreamResponse(
            outputs=[np.array(outputs, "<i8").tobytes()], steps=len(outputs), step_index=image.step_index
        )

    def _keep(self, reply: pb.StreamResponse, told: int) -> pb.StreamResponse:
        image = self.image
        image.replies.append((image.applied + 1, told, reply))
        image.told = told
        if not told:
            image.applied += 1
            self.answered, self.unacknowledged = image.applied, 0
            image.replies = [each for each in image.replies if each[0] > image.applied - self.window]
        if self.level == pb.DURABILITY_STORE_SYNC:
            self.put()
        return reply

    def put(self) -> None:
        """Put the session into the store, unless another replica has it now."""
        if self.store.attempts[self.session] == self.attempt:
            self.store.images[self.session] = copy.deepcopy(self.image)

    def durable(self) -> int | None:
        """How much the store has, if that is news to the client."""
        if self.store.attempts[self.session] != self.attempt:
            return None
        stored = self.store.images[self.session].applied
        if stored <= self.told_durable:
            return None
        self.told_durable = stored
        return stored
