"""The rows of one run, and how they are chosen from the ready sessions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from streamcell.service.sessions.session import Group, Session, Work


class Part(NamedTuple):
    """`steps` timesteps of `work`, from its step `start` on."""

    work: Work
    start: int
    steps: int


# As `Part(…)`, without a call of Python code for each row of each run.
_part: Callable[[tuple[Work, int, int]], Part] = partial(tuple.__new__, Part)


@dataclass(slots=True)
class Row:
    """One session's part of a batch: `steps` timesteps, taken from the front of its queue."""

    session: Session
    steps: int
    # More than one if pipelined messages run as one chunk.
    parts: list[Part]
    work: Work  # the first part's
    # Goes to the front of the session's queue when the run is complete: the next step of a generation.
    again: Work | None = None
    # The gate at which that waits until its client has read; 0: it does not wait.
    gate: int = 0

    @property
    def ends_message(self) -> bool:
        """True if no part of its last message is still to come; of a generation, if its next reply is due."""
        last = self.parts[-1]
        return last.start + last.steps == last.work.steps and last.work.due


@dataclass(slots=True)
class Batch:
    """Rows that run together; `steps` is the longest row's."""

    rows: list[Row]
    steps: int
    # Every row is one whole message, and all are of the same length: the case that is copied in one piece.
    uniform: bool
    # True if there may be a row whose work makes its own inputs; such a row is one timestep.
    generates: bool = False
    # Groups: work with several rows, or none. `rows` holds all rows of each.
    groups: Sequence[Group] = ()
    taken_s: float = field(default_factory=time.perf_counter)
    began_s: float = 0.0  # the run
    ended_s: float = 0.0

    @property
    def sessions(self) -> list[Session]:
        """The sessions whose queues its work was taken from."""
        sessions = [row.session for row in self.rows]
        return sessions + [group.session for group in self.groups] if self.groups else sessions

    def apart(self) -> Iterator[Batch]:
        """Batches of one row each, but a group's rows stay together."""
        for row in self.rows:
            if row.work.group is None:
                yield Batch([row], row.steps, uniform=False, generates=self.generates)
        for group in self.groups:
            rows = [row for row in self.rows if row.work.group is group]
            yield Batch(rows, 1, uniform=False, generates=True, groups=[group])


class BatchQueue:
    """The `Source` of batches: sessions with work and none in the engine, in order. The batcher's lock guards it."""

    def __init__(self, *, max_batch: int, max_chunk: int, ragged: bool, coalesce: bool) -> None:
        """Make an empty queue.

        Args:
            max_batch: the most rows of a batch.
            max_chunk: the most timesteps of a row.
            ragged: whether rows of different length may share a batch (the model takes `lengths`).
            coalesce: whether pipelined messages of one session may run as one chunk, and long ones be cut. Right
                for what is carried in states; a stateless model may look at a message as a whole.
        """
        self.ready: deque[Session] = deque()
        self._max_batch = max_batch
        self._max_chunk = max_chunk
        self._ragged = ragged
        self._coalesce = coalesce

    def gather(self) -> None:
        """Do nothing: the sessions are added by the threads that submit work."""

    def add(self, session: Session) -> None:
        """Queue a session that has work and none in the engine."""
        self.ready.append(session)

    def remove(self, session: Session) -> None:
        """Take a ready session out: it has no work any more."""
        self.ready.remove(session)
        session.ready = False

    @property
    def any(self) -> bool:
        """True if a session is ready."""
        return bool(self.ready)

    @property
    def unary_rows(self) -> int:
        """How many of the ready sessions are rows of unary calls."""
        return sum(not session.session_id for session in self.ready)

    def form(self) -> Batch | None:
        """The first ready session leads; others join it in order while no row is over twice another's length.

        So less than half of a run is padding, and one long chunk never drags single steps along.
        """
        rows: list[Row] = []
        groups: list[Group] = []
        passed_over: list[Session] = []
        shortest = longest = 0
        whole = True
        generates = False
        ready = self.ready
        for _ in range(len(ready)):
            session = ready.popleft()
            if session.ended:
                session.ready = False
                continue
            queue: deque[Work] = session.queue
            first = queue[0]
            # Usually there is one message, and it runs whole.
            alone = (
                len(queue) == 1 and not first.done and not first.generates and first.steps <= self._max_chunk
            )
            if alone:
                steps = first.steps
            else:
                steps = self._chunk(session)
                if not steps:
                    groups.append(self._aside(session))
                    generates = True
                    continue
            group = first.group
            if rows and not (
                (steps == longest or self._fits(steps, shortest, longest))
                and (group is None or len(rows) + group.rows <= self._max_batch)
            ):
                passed_over.append(session)
                continue
            if not rows:
                shortest = longest = steps
            elif steps < shortest:
                shortest = steps
            elif steps > longest:
                longest = steps
            session.ready = False
            session.in_flight = True
            if group is not None:
                queue.popleft()
                rows += [Row(each, 1, [Part(work, 0, 1)], work) for each, work in group.take()]
                groups.append(group)
                generates = True
                if len(rows) == self._max_batch:
                    break
                continue
            if alone:
                first.done = steps
                queue.popleft()
                parts = [_part((first, 0, steps))]
            else:
                parts = self._cut(session, steps)
                whole = whole and len(parts) == 1 and parts[0].steps == first.steps
                generates = generates or first.generates
            rows.append(Row(session, steps, parts, first))
            if len(rows) == self._max_batch:
                break
        ready.extendleft(reversed(passed_over))
        if not rows and not groups:
            return None
        return Batch(rows, longest, whole and shortest == longest, generates, groups)

    @staticmethod
    def _aside(session: Session) -> Group:
        """Take work that needs no run from the front of the session's queue."""
        session.ready = False
        session.in_flight = True
        aside: Group = session.queue.popleft()
        return aside

    def _chunk(self, session: Session) -> int:
        """How many timesteps the session runs next: whole messages up to `max_chunk`, or a part of a longer one.

        0 if the first work in its queue takes no row.

        A message that fits in a chunk is never cut: it is applied as a whole or, if it is refused, not at all.
        A step that makes its own input runs alone, and so does each message of a session in a journal: the row that
        it writes is committed with its reply.
        """
        queue: deque[Work] = session.queue
        if queue[0].aside:
            return 0
        if not self._coalesce or session.journal_entry is not None:
            return min(queue[0].steps - queue[0].done, self._max_chunk)
        steps = 0
        for work in queue:
            if work.generates:
                return steps or 1
            left = work.steps - work.done
            if steps + left > self._max_chunk:
                return steps or self._max_chunk
            steps += left
        return steps

    def _fits(self, steps: int, shortest: int, longest: int) -> bool:
        if not self._ragged:
            return steps == longest
        return steps <= 2 * shortest and longest <= 2 * steps

    @staticmethod
    def _cut(session: Session, steps: int) -> list[Part]:
        """Take `steps` timesteps from the front of the session's queue."""
        queue: deque[Work] = session.queue
        parts = []
        while steps:
            work = queue[0]
            count = min(steps, work.steps - work.done)
            parts.append(Part(work, work.done, count))
            work.done += count
            steps -= count
            if work.done == work.steps:
                queue.popleft()
        return parts
