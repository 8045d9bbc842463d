"""One run's rows, and how they are chosen from the sessions that are ready."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from streamcell.service.generation.search_work import BeamStep, Search
from streamcell.service.sessions.session import Session, Work


@dataclass(slots=True)
class Row:
    """One session's part of a batch: `steps` timesteps, taken from the front of its queue."""

    session: Session
    steps: int
    # (work, first step, number of steps): more than one where pipelined messages run as one chunk.
    parts: list[tuple[Work, int, int]]
    # What stands first in the session's queue once this has landed: the next step of a generation.
    again: Work | None = None
    # Under which number that is held until its client has read; 0: it is not.
    hold: int = 0


@dataclass(slots=True)
class Batch:
    """Rows that run together; `steps` is the longest row's."""

    rows: list[Row]
    steps: int
    # Every row is one whole message, and all are of the same length: the case that is copied in one piece.
    uniform: bool
    # Whether there may be a row of a generation; such a row is one timestep.
    generates: bool = False
    # Whose hypotheses are among the rows, all of them, as `Beam`s.
    searches: Sequence[Search] = ()
    taken_s: float = field(default_factory=time.perf_counter)
    began_s: float = 0.0  # the run
    ended_s: float = 0.0

    @property
    def sessions(self) -> Iterator[Session]:
        """Whose rows they are."""
        return chain((row.session for row in self.rows), (search.session for search in self.searches))

    def keep(self, rows: list[Row]) -> list[Search]:
        """Go on with `rows` of the batch, some of them cut short; the searches that none of them belongs to."""
        left = {id(row.session) for row in rows}
        gone = [search for search in self.searches if id(search.active[0]) not in left]
        self.searches = [search for search in self.searches if search not in gone]
        self.rows = rows
        self.steps = max((row.steps for row in rows), default=0)
        self.uniform = False
        return gone

    def apart(self) -> Iterator[Batch]:
        """The rows one by one, but a search's together."""
        for row in self.rows:
            if not isinstance(row.parts[0][0], BeamStep):
                yield Batch([row], row.steps, uniform=False, generates=self.generates)
        for search in self.searches:
            rows = [
                row
                for row in self.rows
                if isinstance(step := row.parts[0][0], BeamStep) and step.search is search
            ]
            yield Batch(rows, 1, uniform=False, generates=True, searches=[search])


class BatchQueue:
    """The sessions that have work and none in the engine, in order. The batcher's lock guards it."""

    def __init__(self, *, max_batch: int, max_chunk: int, ragged: bool, coalesce: bool) -> None:
        """The arguments are the batcher's."""
        self.ready: deque[Session] = deque()
        self._max_batch = max_batch
        self._max_chunk = max_chunk
        self._ragged = ragged
        self._coalesce = coalesce

    def form(self) -> Batch | None:
        """The first ready session leads; others join it in order while no row is over twice another's length.

        So less than half of a run is padding, and one long chunk never drags single steps along.
        """
        rows: list[Row] = []
        searches: list[Search] = []
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
            # Mostly there is one message, which is run whole.
            alone = (
                len(queue) == 1 and not first.done and not first.generates and first.steps <= self._max_chunk
            )
            steps = first.steps if alone else self._chunk(session)
            search = first if first.generates and isinstance(first, Search) else None
            if rows and not (
                (steps == longest or self._fits(steps, shortest, longest))
                and (search is None or len(rows) + search.rows <= self._max_batch)
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
            if search is not None:
                queue.popleft()
                rows += [Row(beam, 1, [(beam.step, 0, 1)]) for beam in search.take()]
                searches.append(search)
                generates = True
                if len(rows) == self._max_batch:
                    break
                continue
            if alone:
                first.done = steps
                queue.popleft()
                parts = [(first, 0, steps)]
            else:
                parts = self._cut(session, steps)
                whole = whole and len(parts) == 1 and parts[0][2] == first.steps
                generates = generates or first.generates
            rows.append(Row(session, steps, parts))
            if len(rows) == self._max_batch:
                break
        ready.extendleft(reversed(passed_over))
        if not rows:
            return None
        return Batch(rows, longest, whole and shortest == longest, generates, searches)

    def _chunk(self, session: Session) -> int:
        """How many timesteps the session runs next: whole messages up to `max_chunk`, or a part of a longer one.

        A message that fits in a chunk is never cut, so that it is applied wholly or, where it is refused, not at all.
        A generation's step runs alone.
        """
        queue: deque[Work] = session.queue
        if not self._coalesce:
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
    def _cut(session: Session, steps: int) -> list[tuple[Work, int, int]]:
        """Take `steps` timesteps off the front of the session's queue."""
        queue = session.queue
        parts = []
        while steps:
            work = queue[0]
            count = min(steps, work.steps - work.done)
            parts.append((work, work.done, count))
            work.done += count
            steps -= count
            if work.done == work.steps:
                queue.popleft()
        return parts
