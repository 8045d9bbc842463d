"""A session and its queued work. Both are plain data; only the batcher changes them, under its lock."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Protocol

from mypy_extensions import mypyc_attr

from streamcell.service.access.grant import Grant
from streamcell.service.durability.journal import Entry
from streamcell.service.errors import ServiceError
from streamcell.service.graph.rows import INITIAL_ROW
from streamcell.service.metrics.request_metrics import Computed

from .capacity import Capacity


class Output(Enum):
    """Which output steps of a message its reply carries."""

    ALL = 1
    LAST = 2
    NONE = 3


class SessionListener(Protocol):
    """Gets a session's outputs: a stream, or one row of a unary call. The thread that runs the engine calls it."""

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """`work` is done: one tensor an output, each of `steps` timesteps; `step_index` steps applied so far."""

    def resume(self) -> None:
        """The session's queue has room again."""

    def fail(self, error: ServiceError) -> None:
        """The server has ended the session with `error`; the slot is given back."""


class _Ended:
    """The listener of a session that has ended: runs that were under way may still report to it."""

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Nobody is told."""

    def resume(self) -> None:
        """Nobody is read."""

    def fail(self, error: ServiceError) -> None:
        """It has ended before."""


ENDED: SessionListener = _Ended()


class Work:
    """One message's timesteps: `payloads` holds one tensor an input, [steps, *step_shape] in C order."""

    # True if the server makes its inputs and puts it back into its session's queue after each of its steps.
    generates = False
    # True if it takes no row, and is done between two runs.
    aside = False
    # Set if it is work of several rows, or one of these rows: all of them run in one batch.
    group: Group | None = None

    __slots__ = ("arrived_s", "counted", "done", "output", "payloads", "pieces", "spent", "steps", "tag")

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
        # What earlier runs spent on it, if it takes several.
        self.spent: Computed | None = None

    def drop(self, capacity: Capacity) -> None:
        """Give back the room that it holds; it will not run again."""

    @property
    def begun(self) -> bool:
        """True if a part of it has run."""
        return self.done > 0

    @property
    def due(self) -> bool:
        """True if its reply, or the next one, is due once what runs has run."""
        return True

    @property
    def steps_given(self) -> int:
        """The timesteps that the reply carries."""
        if self.output is Output.ALL:
            return self.steps
        return 1 if self.output is Output.LAST else 0


class Group(Work):
    """Work that takes several rows, all in one batch. It is one entry of its session's queue."""

    __slots__ = ("group", "session")

    session: Session

    def __init__(
        self, payloads: tuple[bytes, ...], steps: int, output: Output, tag: int, arrived_s: float
    ) -> None:
        super().__init__(payloads, steps, output, tag, arrived_s)
        self.group = self

    @property
    @abstractmethod
    def rows(self) -> int:
        """How many rows `take` gives."""

    @abstractmethod
    def take(self) -> Iterable[tuple[Session, Work]]:
        """Its rows in the batch that is being formed: the session and the work of each."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """True once it needs no further run."""


class Aside(Group):
    """Work on its session between two runs, in the order of its messages. It takes no row.

    Attributes:
        do: called on the thread that runs the engine.
        tell: called then, once the session may run again.
        numbered: it has a number, like a message with steps.
        begun: its session needs it, so nothing drops it.
    """

    __slots__ = ("_begun", "do", "numbered", "tell")

    aside = True
    generates = True

    def __init__(
        self,
        session: Session,
        do: Callable[[], None],
        tell: Callable[[], None],
        *,
        numbered: bool = False,
        begun: bool = False,
    ) -> None:
        super().__init__((), 1, Output.NONE, 0, 0.0)
        self.session = session
        self.do = do
        self.tell = tell
        self.numbered = numbered
        self._begun = begun

    @property
    def begun(self) -> bool:
        """See `Work`."""
        return self._begun

    @property
    def rows(self) -> int:
        """None."""
        return 0

    def take(self) -> Iterable[tuple[Session, Work]]:
        """None."""
        return ()

    @property
    def over(self) -> bool:
        """See `Group`: it is done once."""
        return True


@mypyc_attr(allow_interpreted_subclasses=True)
class Session:
    """One live sequence. `slot` is its row in the pool, 0 for a stateless model.

    Subclasses stand for more: a stream of frames is one session to the batcher and to the table of sessions. They
    override methods and properties, never attributes: compiled code reads an attribute where this class has it.
    """

    __slots__ = (
        "detached_s",
        "ended",
        "fresh",
        "gate",
        "gates",
        "in_flight",
        "journal_entry",
        "last_output",
        "last_used_s",
        "listener",
        "members",
        "opened_gate",
        "opened_s",
        "opening",
        "owner",
        "paused",
        "peer",
        "queue",
        "read_apart",
        "reads",
        "ready",
        "session_id",
        "slot",
        "slot_version",
        "source",
        "step_index",
        "token_hash",
        "writes",
    )

    def __init__(
        self,
        session_id: str,
        listener: SessionListener,
        slot: int,
        slot_version: int,
        now_s: float,
        peer: str = "",
    ) -> None:
        self.session_id = session_id
        self.listener = listener
        self.slot = slot
        self.slot_version = slot_version
        self.opened_s = now_s
        self.last_used_s = now_s
        self.peer = peer
        self.owner: Grant | None = None  # the tenant that it belongs to, if there are tenants
        self.queue: deque[Any] = deque()  # of `Work`, or of what its source takes
        self.step_index = 0  # timesteps applied
        self.fresh = True  # no step applied yet
        # The pool row that its next step reads: the initial row, or its own once a step was applied.
        self.reads = INITIAL_ROW
        self.writes = slot  # the row that its next step writes
        self.journal_entry: Entry | None = (
            None  # in the journal, if it outlives the process: then it has two rows
        )
        # Its messages are read by operations of their own, not with the replies: replies may come unasked.
        self.read_apart = False
        self.ready = False  # is in the batcher's ready queue
        self.in_flight = False  # a chunk is in the engine now
        self.paused = False  # its stream is not read, because the queue is full
        self.ended = False  # takes no more work; its results are dropped
        self.members = 1  # live sequences
        # Number of the gate at which the session's generation waits for its client to read; 0: it does not wait.
        self.gate = 0
        # That its generations have come to: never fewer, though it is put back to an earlier step.
        self.gates = 0
        self.opened_gate = 0  # the last gate that was opened, perhaps before the session came to it
        self.opening: tuple[bytes, ...] = ()  # what it was given when it opened: a value an open input
        self.source: Any = None  # the `batching.turn_taking.Source` in which it becomes ready
        self.last_output = b""  # the last timestep of the output that generations feed back
        self.token_hash = b""  # SHA-256 of a resumable session's token
        self.detached_s: float | None = None  # since when it has no stream, and waits to be resumed

    def drop_queue(self, capacity: Capacity) -> None:
        """Drop the queued work, and give back the room that it holds."""
        for work in self.queue:
            work.drop(capacity)
        self.queue.clear()

    def advance(self, steps: int, *, whole: bool) -> None:
        """Note that `steps` timesteps were applied. `whole`: a message ends with them."""
        self.fresh = False
        self.step_index += steps
        self.reads = wrote = self.writes
        # The other row is the one that counts, until this one is committed. The rest of a message goes on in this one.
        if self.journal_entry is not None and whole:
            self.writes = self.journal_entry.rows - wrote

    def rewind(self, step_index: int) -> None:
        """Restore the state after this many timesteps, which is in the row that its next step would have written."""
        if step_index:
            self.step_index = 0
            self.advance(step_index, whole=True)
            return
        self.step_index, self.fresh, self.reads = 0, True, INITIAL_ROW
        if self.journal_entry is not None:
            self.writes = self.journal_entry.rows - self.writes

    def settle(self) -> None:
        """The row that was written last counts from its commit on, though no message's end was in sight before."""
        if self.journal_entry is not None and self.reads != INITIAL_ROW:
            self.writes = self.journal_entry.rows - self.reads

    def free(self, capacity: Capacity) -> None:
        """Give back its room. It has ended and has no work in flight."""
        if self.journal_entry is not None:
            self.journal_entry.close()
        capacity.give_back(self.slot, self.slot_version)

    def figures(self) -> tuple[int, bool, float]:
        """Timesteps applied, True if none is yet, and when it was last used; for threads that do not run it."""
        return self.step_index, self.fresh, self.last_used_s

    def touch(self, now_s: float) -> None:
        """Note that it was used."""
        self.last_used_s = now_s

    @property
    def tenant(self) -> str:
        """Whose it is; empty if there are no tenants."""
        return "" if self.owner is None else self.owner.tenant

    @property
    def queued(self) -> int:
        """Messages that wait to be run."""
        return len(self.queue)

    def has_idle_members(self, before_s: float) -> bool:
        """True if it has members that seem idle since before that time. A plain session has none."""
        return False

    def expire_members(self, before_s: float) -> None:
        """End the members that were last used before that time, at their next turn."""

    @property
    def fresh_count(self) -> int:
        """How many of its members have applied no step yet."""
        return int(self.fresh)
