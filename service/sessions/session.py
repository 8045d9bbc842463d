"""A session and the work it has queued. Plain data: the batcher changes both, under its lock."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Any, Protocol

from streamcell.service.engine.rows import INITIAL_ROW
from streamcell.service.errors import ServiceError

from .capacity import Capacity


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

    # True if the server makes its inputs and puts it back into its session's queue after each of its steps.
    generates = False
    # Set if it is work of several rows, or one of these rows: all of them run in one batch.
    group: Group | None = None

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


class Group(Work):
    """Work that takes several rows, all of them in one batch. It stands in its session's queue as one piece."""

    __slots__ = ("session",)

    session: Session

    @property
    def group(self) -> Group:  # type: ignore[override]
        """Itself."""
        return self

    @property
    @abstractmethod
    def rows(self) -> int:
        """How many rows `take` gives."""

    @abstractmethod
    def take(self) -> Iterable[tuple[Session, Work]]:
        """The rows of the batch that is being formed: what runs, and the work of each."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """True once it needs no further run."""


class Session:
    """One live sequence. `slot` is its row in the pool, 0 for a stateless model.

    Subclasses stand for more: a stream of frames is one session to the batcher and to the table of sessions.
    """

    __slots__ = (
        "ended",
        "fresh",
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
        "slot_version",
        "source",
        "step_index",
    )

    def __init__(
        self, session_id: str, owner: Owner, slot: int, slot_version: int, now_s: float, peer: str = ""
    ) -> None:
        self.session_id = session_id
        self.owner = owner
        self.slot = slot
        self.slot_version = slot_version
        self.opened_s = now_s
        self.last_used_s = now_s
        self.peer = peer
        self.queue: deque[Any] = deque()  # of `Work`, or of what its source takes
        self.step_index = 0  # timesteps applied
        self.fresh = True  # no step applied yet
        # The row of the pool that its next step reads; its own once a step was applied.
        self.reads = INITIAL_ROW
        self.ready = False  # stands in the batcher's ready queue
        self.in_flight = False  # a chunk is in the engine now
        self.paused = False  # its stream is not being read, since the queue is full
        self.ended = False  # takes no more work; its results are dropped
        self.members = 1  # live sequences
        # A generation that waits for its client to read holds the session, under a number of its own; 0: none.
        self.held = 0
        self.released = 0  # the latest such number that was released, perhaps before it held
        self.source: Any = None  # the `batching.turn_taking.Source` in which it becomes ready
        self.last_output = b""  # the last timestep of the output that generations feed back

    def drop_queue(self, capacity: Capacity) -> None:
        """Forget what is queued, and give back what that holds."""
        for work in self.queue:
            work.drop(capacity)
        self.queue.clear()

    def free(self, capacity: Capacity) -> None:
        """Give back what it holds. It has ended and its work has landed."""
        capacity.give_back(self.slot, self.slot_version)

    @property
    def queued(self) -> int:
        """Messages that wait to be run."""
        return len(self.queue)

    def has_idle_members(self, before_s: float) -> bool:
        """Whether members of its own seem to have been last used before then. A plain session has none."""
        return False

    def expire_members(self, before_s: float) -> None:
        """See that members that were last used before then end."""

    @property
    def unused(self) -> int:
        """How many of its members have applied no step."""
        return int(self.fresh)
