"""Forms batches across sessions: every ready session, at most one chunk each, the moment the engine is free."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import ServerDraining, SessionLimit
from .pool import SlotAllocator
from .session import Owner, Session, Work


@dataclass(slots=True)
class Row:
    """One session's part of a batch: `steps` timesteps, taken from the front of its queue."""

    session: Session
    steps: int
    # (work, first step, number of steps): more than one where pipelined messages run as one chunk.
    parts: list[tuple[Work, int, int]]


@dataclass(slots=True)
class Batch:
    """Rows that run together; `steps` is the longest row's."""

    rows: list[Row]
    steps: int
    # Every row is one whole message, and all are of the same length: the case that is copied in one piece.
    uniform: bool
    taken_s: float = field(default_factory=time.perf_counter)


class Batcher:
    """The queue between the streams and one model's engine. Every method may be called from any thread.

    A session's slot is freed when it ends, or, where a chunk of it is in the engine, when that has landed.
    """

    def __init__(
        self,
        slots: SlotAllocator | None,
        *,
        max_sessions: int,
        max_batch: int,
        max_chunk: int,
        ragged: bool,
        coalesce: bool = True,
        queue_messages: int,
        on_cancelled: Callable[[int], None] = lambda chunks: None,
    ) -> None:
        """Make an empty batcher.

        Args:
            slots: the pool's slots, `max_sessions` of them; None for a stateless model.
            max_sessions: sessions that may be live at once.
            max_batch: the most rows of a batch.
            max_chunk: the most timesteps of a row.
            ragged: whether rows of different length may share a batch (the model takes `lengths`).
            coalesce: whether pipelined messages of one session may run as one chunk, and long ones be cut. Right
                for what is carried in states; a stateless model may look at a message as a whole.
            queue_messages: messages that a session may have waiting before its stream is no longer read.
            on_cancelled: told how many queued messages an ending session left unrun.
        """
        self._slots = slots
        self._max_sessions = max_sessions
        self._max_batch = max_batch
        self._max_chunk = max_chunk
        self._ragged = ragged
        self._coalesce = coalesce
        self._queue_messages = queue_messages
        self._on_cancelled = on_cancelled
        self._lock = threading.Lock()
        self._ready: deque[Session] = deque()
        self._wake = threading.Lock()  # held while the engine has nothing to wake up for
        self._wake.acquire()
        self._sleeping = False
        self._stopped = False
        self._live = 0

    # Sessions

    def open(self, session_id: str, owner: Owner, peer: str = "") -> Session:
        """Start a session at the initial state. Rows of unary calls on a stateless model have no id and no limit.

        Raises:
            SessionLimit: as many sessions are live as there may be.
            ServerDraining: the engine has been stopped.
        """
        with self._lock:
            if self._stopped:
                raise ServerDraining("the model is being shut down")
            limited = session_id or self._slots is not None
            if limited and self._live >= self._max_sessions:
                raise SessionLimit(
                    f"all {self._max_sessions} sessions of this model are taken; try again later",
                    max_sessions=self._max_sessions,
                )
            slot, generation = self._slots.take() if self._slots is not None else (0, 0)
            self._live += 1
            return Session(session_id, owner, slot, generation, time.monotonic(), peer)

    def end(self, session: Session) -> bool:
        """End `session`: what it has queued is dropped, what is in the engine finishes unanswered.

        Returns:
            False where it had ended already.
        """
        with self._lock:
            if session.ended:
                return False
            session.ended = True
            dropped = len(session.queue)
            session.queue.clear()
            session.queued_steps = 0
            if not session.in_flight:
                self._free(session)
        if dropped:
            self._on_cancelled(dropped)
        return True

    def _free(self, session: Session) -> None:
        self._live -= 1
        if self._slots is not None:
            self._slots.give_back(session.slot, session.generation)

    @property
    def live(self) -> int:
        """Sessions that hold a slot, those whose last chunk is still in the engine included."""
        return self._live

    @property
    def slots_used(self) -> int:
        """State slots taken now."""
        return 0 if self._slots is None else self._slots.used

    # Work

    def submit(self, session: Session, work: Work) -> bool:
        """Queue one message of `session`. Work of a session that has ended is dropped.

        Returns:
            Whether there is room for another message. Where there is not, `owner.resume` is called once there is.
        """
        with self._lock:
            if session.ended:
                return False
            session.last_used_s = time.monotonic()
            session.queue.append(work)
            session.queued_steps += work.steps
            room = len(session.queue) < self._queue_messages
            session.paused = not room
            if not session.ready and not session.in_flight:
                session.ready = True
                self._ready.append(session)
                if self._sleeping:
                    self._sleeping = False
                    self._wake.release()
        return room

    def take(self) -> Batch | None:
        """Wait for work and form a batch of it; None once stopped."""
        while True:
            with self._lock:
                if self._stopped:
                    return None
                batch = self._form() if self._ready else None
                if batch is None:
                    self._sleeping = True
            if batch is not None:
                self._resume(batch)
                return batch
            self._wake.acquire()

    def _form(self) -> Batch | None:
        """The first ready session leads; others join it in order while no row is over twice another's length.

        So less than half of a run is padding, and one long chunk never drags single steps along.
        """
        rows: list[Row] = []
        passed_over: list[Session] = []
        shortest = longest = 0
        whole = True
        ready = self._ready
        for _ in range(len(ready)):
            session = ready.popleft()
            if session.ended:
                session.ready = False
                continue
            steps = self._chunk(session)
            if rows and not self._fits(steps, shortest, longest):
                passed_over.append(session)
                continue
            shortest = min(shortest or steps, steps)
            longest = max(longest, steps)
            session.ready = False
            session.in_flight = True
            parts = self._cut(session, steps)
            whole = whole and len(parts) == 1 and parts[0][2] == parts[0][0].steps
            rows.append(Row(session, steps, parts))
            if len(rows) == self._max_batch:
                break
        ready.extendleft(reversed(passed_over))
        return Batch(rows, longest, whole and shortest == longest) if rows else None

    def _chunk(self, session: Session) -> int:
        """How many timesteps the session runs next: whole messages up to `max_chunk`, or a part of a longer one.

        A message that fits in a chunk is never cut, so that it is applied wholly or, where it is refused, not at all.
        """
        if not self._coalesce:
            return min(session.queue[0].steps - session.queue[0].done, self._max_chunk)
        steps = 0
        for work in session.queue:
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
        session.queued_steps -= steps
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

    def _resume(self, batch: Batch) -> None:
        for row in batch.rows:
            session = row.session
            if session.paused and len(session.queue) < self._queue_messages:
                session.paused = False
                session.owner.resume()

    def landed(self, batch: Batch, *, applied: bool) -> None:
        """The engine is done with `batch`. Sessions with more work are ready again, ended ones free their slots.

        Args:
            batch: as `take` gave it.
            applied: whether the states were advanced.
        """
        with self._lock:
            for row in batch.rows:
                session = row.session
                session.in_flight = False
                if applied:
                    session.fresh = False
                    session.step_index += row.steps
                if session.ended:
                    self._free(session)
                elif session.queue:
                    session.ready = True
                    self._ready.append(session)

    def stop(self) -> None:
        """Make `take` return None. Sessions are not ended by this."""
        with self._lock:
            self._stopped = True
            if self._sleeping:
                self._sleeping = False
                self._wake.release()
