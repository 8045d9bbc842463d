"""Forms batches across sessions: every ready session, at most one chunk each, the moment the engine is free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from streamcell.service.errors import ServerDraining, SessionLimit
from streamcell.service.machine import USUAL, Machine
from streamcell.service.sessions.capacity import Capacity
from streamcell.service.sessions.session import Group, Session, SessionListener

from .batch import Batch, BatchQueue, Row
from .fair_queue import FairQueue
from .inline import AfterArrivals, InlineRuns, Wakeup
from .turn_taking import Job, Source, TurnTaking

_Kind = TypeVar("_Kind", bound=Session)


class Batcher:
    """The queue between the streams and one model's engine. Any thread may call every method.

    A session's slot is freed when the session ends or, if a chunk of it is in the engine then, once that has run.
    """

    def __init__(
        self,
        capacity: Capacity,
        *,
        max_batch: int,
        max_chunk: int,
        ragged: bool,
        coalesce: bool = True,
        queue_messages: int,
        on_cancelled: Callable[[int], None] = lambda chunks: None,
        wakeup: Wakeup | None = None,
        machine: Machine = USUAL,
        fair: bool = False,
    ) -> None:
        """Make an empty batcher.

        Args:
            capacity: the model's room for sessions.
            max_batch, max_chunk, ragged, coalesce: as for `BatchQueue`.
            queue_messages: messages that a session may have waiting before its stream is no longer read.
            on_cancelled: called with the number of queued messages that an ending session leaves unrun.
            wakeup: what the engine thread sleeps on, if more than the batcher may wake it.
            machine: what a hand-over to that thread costs.
            fair: whether tenants share the batches.
        """
        self.capacity = capacity
        self.inline = InlineRuns(wakeup, machine)
        self._queue_messages = queue_messages
        self._on_cancelled = on_cancelled
        self._lock = threading.Lock()
        kind = FairQueue if fair else BatchQueue
        self._batches = kind(max_batch=max_batch, max_chunk=max_chunk, ragged=ragged, coalesce=coalesce)
        self._turns = TurnTaking(self._batches)
        self._stopped = False
        self._admitted = 0  # live sessions of other sources
        self._taken = 0  # jobs, so far

    def add_source(self, source: Source) -> None:
        """Add another kind of work for the engine thread. Call before that thread starts, or while it sleeps."""
        with self._lock:
            self._turns.add(source)

    # Sessions

    def open(self, session_id: str, listener: SessionListener, peer: str = "") -> Session:
        """Start a session at the initial state. Rows of unary calls on a stateless model have no id and no limit.

        Raises:
            SessionLimit: the model has no room for another session.
            ModelUnloading: the model is being unloaded.
            ServerDraining: the engine has been stopped.
        """
        with self._lock:
            if self._stopped or self.capacity.closed:
                self._check_running()
            slot, version = self.capacity.take(limited=bool(session_id))
            session = Session(session_id, listener, slot, version, time.monotonic(), peer)
            session.source = self._batches
            return session

    def admit(self, make: Callable[[float], _Kind]) -> _Kind:
        """Start a session of another source, which `make` makes, given the time. It takes no slot itself.

        There may be as many of these as sessions, because one may stand for none.

        Raises:
            SessionLimit: there are.
            ModelUnloading: the model is being unloaded.
            ServerDraining: the engine has been stopped.
        """
        with self._lock:
            self._check_running()
            most = self.capacity.max_sessions
            if self._admitted >= most:
                raise SessionLimit(
                    f"this model has {most} streams of frames, as many as sessions: end some, or try again later",
                    max_sessions=most,
                )
            self._admitted += 1
            return make(time.monotonic())

    def _check_running(self) -> None:
        self.capacity.check_open()
        if self._stopped:
            raise ServerDraining("the model is being shut down")

    def change(self, session: Session, change: Callable[[], None]) -> bool:
        """Call `change`, which changes what `session` holds; False, and nothing is done, if it has ended."""
        with self._lock:
            if not session.ended:
                change()
            return not session.ended

    def end(self, session: Session) -> bool:
        """End `session`: drop its queued work; work in the engine finishes without a reply.

        False if it had ended already.
        """
        with self._lock:
            if session.ended:
                return False
            session.ended = True
            self._admitted -= session.source is not None and session.source is not self._batches
            dropped = len(session.queue)
            if dropped:
                session.drop_queue(self.capacity)
            if not session.in_flight:
                session.free(self.capacity)
        if dropped:
            self._on_cancelled(dropped)
        return True

    def drop_waiting(self, session: Session) -> list[Any]:
        """Drop the queued messages of `session` that have not begun; returns them: `Work`, or its source's kind.

        Work that has begun continues: a run in the engine, a message cut into several runs, a generation.
        """
        with self._lock:
            queue = session.queue
            left = [work for work in queue if work.begun]
            dropped: list[Any] = [work for work in queue if not work.begun]
            queue.clear()
            queue.extend(left)
            for work in dropped:
                work.drop(self.capacity)
            if session.ready and not queue and session.source is self._batches:
                self._batches.remove(session)
            session.paused = False
        if dropped:
            self._on_cancelled(len(dropped))
        return dropped

    def close(self, *, closed: bool = True) -> None:
        """If `closed`, opening a session raises ModelUnloading from now on; else it succeeds again."""
        self.capacity.closed = closed

    def close_if_idle(self) -> bool:
        """`close`, unless a session of any kind or a row of a unary call is live; True if it is closed."""
        with self._lock:
            if self.capacity.live or self._admitted:
                return False
            self.close()
            return True

    @property
    def live(self) -> int:
        """Sessions that hold room, including ended ones whose last chunk is still in the engine."""
        return self.capacity.live

    @property
    def rows_waiting(self) -> int:
        """Rows of unary calls that wait to be run."""
        with self._lock:
            return self._batches.unary_rows

    # Work comes in

    def submit(self, session: Session, work: Any, after_arrivals: AfterArrivals | None = None) -> bool:
        """Queue one message of `session`. Work of a session that has ended is dropped.

        Args:
            session: the session that sent it.
            work: a `Work`, or another kind of work that the session's source takes.
            after_arrivals: calls a function on the thread that reads messages, after those that have arrived; given if
                this is that thread. The next batch may then run there instead of on the engine thread.

        True if there is room for another message. If not, `listener.resume` is called once there is.
        """
        with self._lock:
            if session.ended:
                work.drop(self.capacity)
                return False
            session.last_used_s = time.monotonic()
            queue = session.queue
            queue.append(work)
            room = len(queue) < self._queue_messages
            session.paused = not room
            reserved = after_arrivals is not None and self.inline.asleep and self.inline.reserve()
            self._make_ready(session)
        if reserved and after_arrivals is not None:
            self._arrange_inline_run(after_arrivals)
        return room

    def schedule(self, session: Session) -> None:
        """Make a session ready even if it has nothing queued."""
        with self._lock:
            if not session.ended:
                self._make_ready(session)

    def release(self, session: Session, gate: int | None = None) -> None:
        """Open the gate of that number, even if the session does not wait at it yet; None: the latest."""
        with self._lock:
            session.opened_gate = max(session.opened_gate, session.gates if gate is None else gate)
            if session.gate and gate in (None, session.gate):
                session.gate = 0
                if session.queue and not session.ended:
                    self._make_ready(session)

    def _make_ready(self, session: Session) -> None:
        if session.ready or session.in_flight or session.gate:
            return
        session.ready = True
        session.source.add(session)
        if self.inline.asleep:
            self.inline.wake_engine()

    # The engine thread

    def take(self) -> Job | None:
        """Wait for work and take a job; None once the batcher has stopped."""
        while True:
            self._turns.gather()
            with self._lock:
                if self._stopped:
                    return None
                job = self._turns.form()
                self.inline.asleep = job is None
                self._taken += job is not None
            if job is not None:
                self._resume(job)
                return job
            self.inline.sleep()
            self.inline.asleep = False  # other processes wake it, too

    @property
    def progress(self) -> int | None:
        """A number that changes with each job; None while nothing runs and nothing waits."""
        return None if self._stopped or self.inline.asleep else self._taken

    def stop(self) -> None:
        """Make `take` return None, once a reserved run is over. Sessions are not ended by this."""
        with self._lock:
            self._stopped = True
            if self.inline.asleep:
                self.inline.wake_engine()

    # Inline runs, while the engine thread sleeps

    def _arrange_inline_run(self, after_arrivals: AfterArrivals) -> None:
        if not after_arrivals(partial(self._run_inline, after_arrivals)):
            self._finish_inline(None)

    def _run_inline(self, after_arrivals: AfterArrivals) -> None:
        """Run a batch of sessions on this thread."""
        with self._lock:
            batch = None if self._stopped else self._batches.form()
            self._taken += batch is not None
        if batch is None:
            self._finish_inline(None)
            return
        try:
            self._resume(batch)
            self.inline.run(batch)
        finally:
            # The engine thread runs generations: they continue without messages.
            self._finish_inline(None if batch.generates else after_arrivals)

    def _finish_inline(self, after_arrivals: AfterArrivals | None) -> None:
        """Finish the inline run. If sessions are still ready, reserve another one; else wake the engine thread."""
        with self._lock:
            more = after_arrivals is not None and self._batches.any and not self._stopped
            again = self.inline.finish(more=more)
            if not again and (self._stopped or self._turns.any):
                self.inline.wake_engine()
        if again and after_arrivals is not None:
            self._arrange_inline_run(after_arrivals)

    # Work is done

    def _resume(self, job: Job) -> None:
        """Resume reading the streams whose queues were full and have room now."""
        for session in job.sessions:
            if session.paused and len(session.queue) < self._queue_messages:
                session.paused = False
                session.listener.resume()

    def complete(self, batch: Batch, *, applied: bool) -> None:
        """The engine is done with `batch`. Sessions with more work become ready, ended ones free their slots.

        `applied`: its states have advanced.
        """
        uniform = batch.uniform and not batch.generates
        with self._lock:
            for row in batch.rows:
                session = row.session
                session.in_flight = False
                if applied:
                    if session.journal_entry is not None:
                        session.advance(row.steps, whole=uniform or row.ends_message)
                    else:
                        if session.fresh:
                            session.fresh = False
                            session.reads = session.slot
                        session.step_index += row.steps
                if session.ended:
                    session.free(self.capacity)
                    continue
                if row.again is not None:
                    session.queue.appendleft(row.again)
                    session.gate = row.gate if row.gate != session.opened_gate else 0
                if session.queue:
                    self._make_ready(session)
            if batch.generates:
                self._drop_done(batch.rows)
            for group in batch.groups:
                self._complete_group(group)

    def _drop_done(self, rows: list[Row]) -> None:
        """Drop the generations that have ended with this run, or whose sessions have."""
        for row in rows:
            if row.work.generates and (row.again is None or row.session.ended):
                row.work.drop(self.capacity)

    def _complete_group(self, group: Group) -> None:
        session = group.session
        session.in_flight = False
        if session.ended or group.over:
            group.drop(self.capacity)
        else:
            session.queue.appendleft(group)
        if session.ended:
            session.free(self.capacity)
        elif session.queue:
            self._make_ready(session)

    def complete_by(self, how: Callable[[Callable[[Session], None]], None]) -> None:
        """Complete a job of another source: `how` updates its sessions, given a function that makes one ready again."""
        with self._lock:
            how(self._make_ready)
