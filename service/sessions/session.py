"""A session and the work it has queued. Plain data: the batcher changes both, under its lock."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any, Protocol

from streamcell.service.errors import ServiceError

from .capacity import Capacity
from .slots import INITIAL_ROW


class Output(Enum):
    """Which output steps of a message its reply carries."""

    ALL = 1
    LAST = 2
    NONE = 3


class Owner(Protocol):
    """What a session answers to: a stream, or one row of a unary call. Called from the engine's thread."""

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """`work` is done: one tensor an output, each of `steps` timesteps; `step_index` steps applied so far."""

    def resume(self) -> None:
        """The session's queue has room again."""

    def fail(self, error: ServiceError) -> None:
        """The session has ended before its client asked for it; the slot is given back."""


class Work:
    """One message's timesteps: `payloads` holds one tensor an input, [steps, *step_shape] in C order."""

    # Whether the server makes its inputs, and puts it back into its session's queue after each of its steps.
    generates = False

    __slots__ = ("arrived_s", "counted", "done", "output", "payloads", "pieces", "started_s", "steps", "tag")

    def __init__(
        self, payloads: tuple[bytes, ...], steps: int, output: Output, tag: int, arrived_s: float
    ) -> None:
        self.payloads = payloads
        self.steps = steps
        self.output = output
        self.tag = tag
        self.arrived_s = arrived_s
        self.done = 0
        # False for all rows of a unary call but the last: requests are counted, not their rows.
        self.counted = True
        # Outputs of the chunks that have run, for a message cut into several: one list an output.
        self.pieces: list[list[bytes]] | None = None

    def drop(self, capacity: Capacity) -> None:
        """It will not run on: give back what it holds of the model's room."""

    @property
    def steps_given(self) -> int:
        """The timesteps that the reply carries."""
        if self.output is Output.ALL:
            return self.steps
        return 1 if self.output is Output.LAST else 0


class Session:
    """One live sequence. `slot` is its row in the pool, 0 for a stateless model.

    A stream of frames is a session to the batcher and to the table of sessions, too: see `frames/members.py`.
    """

    __slots__ = (
        "ended",
        "fresh",
        "generation",
        "held",
        "in_flight",
        "last_output",
        "last_used_s",
        "members",
        "opened_s",
        "owner",
        "paused",
        "peer",
        "queue",
        "reads",
        "ready",
        "released",
        "session_id",
        "slot",
        "step_index",
    )

    def __init__(
        self, session_id: str, owner: Owner, slot: int, generation: int, now_s: float, peer: str = ""
    ) -> None:
        self.session_id = session_id
        self.owner = owner
        self.slot = slot
        self.generation = generation
        self.opened_s = now_s
        self.last_used_s = now_s
        self.peer = peer
        self.queue: deque[Any] = deque()  # of `Work`, or of a stream's `Frame`s
        self.step_index = 0  # timesteps applied
        self.fresh = True  # no step applied yet
        self.reads = (
            INITIAL_ROW  # the row of the pool that its next step reads; its own once a step was applied
        )
        self.ready = False  # stands in the batcher's ready queue
        self.in_flight = False  # a chunk is in the engine now
        self.paused = False  # its stream is not being read, since the queue is full
        self.ended = False  # takes no more work; its results are dropped
        self.members = 1  # live sequences
        # A generation that waits for its client to read holds the session, under a number of its own; 0: none.
        self.held = 0
        self.released = 0  # the latest such number that was released, perhaps before it held
        self.last_output = b""  # the last timestep of the output that generations feed back

    def drop_queue(self, capacity: Capacity) -> None:
        """Forget what is queued, and give back what that holds."""
        for work in self.queue:
            if isinstance(work, Work):
                work.drop(capacity)
        self.queue.clear()

    def free(self, capacity: Capacity) -> None:
        """Give back what it holds. It has ended and its work has landed."""
        capacity.give_back(self.slot, self.generation)

    @property
    def queued(self) -> int:
        """Messages that wait to be run."""
        return len(self.queue)

    @property
    def unused(self) -> int:
        """How many of its members have applied no step."""
        return int(self.fresh)
