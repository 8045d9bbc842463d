"""Forms batches across sessions: every ready session, at most one chunk each, the moment the engine is free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from streamcell.service.errors import ServerDraining
from streamcell.service.frames.frame import Frame
from streamcell.service.frames.members import FrameOwner, Members
from streamcell.service.frames.turns import Turn
from streamcell.service.processes.engine.ring_batch import RingBatch
from streamcell.service.sessions.capacity import Capacity
from streamcell.service.sessions.session import Owner, Session, Work
from streamcell.service.sessions.slots import SlotAllocator

from .batch import Batch
from .bell import Bell
from .landing import land, land_turn
from .ready import Ready

# Has a function called on the thread that reads messages, after those that have arrived; False where it cannot.
Soon: TypeAlias = Callable[[Callable[[], None]], bool]


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
        capacity: Capacity | None = None,
        bell: Bell | None = None,
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
            capacity: room for sessions that other processes take from too; None: `slots` alone.
            bell: what the engine's thread sleeps on, where it is to wake for more than the batcher.
        """
        self.capacity = capacity or Capacity(slots, max_sessions)
        self._queue_messages = queue_messages
        self._on_cancelled = on_cancelled
        self._lock = threading.Lock()
        self.ready = Ready(max_batch=max_batch, max_chunk=max_chunk, ragged=ragged, coalesce=coalesce)
        self.bell = bell
        self._wake: Bell = bell or threading.Lock()  # held while the engine has nothing to wake up for
        if bell is None:
            self._wake.acquire()
        self._sleeping = False
        self._booked = False  # a batch is to be run, or is being run, while the engine's thread sleeps
        self._stopped = False
        self._streams = self._taken = 0  # of frames, live; batches and turns, so far
        # Runs what is ready on the calling thread, where that is better just now.
        self.inline: Callable[[Soon], None] | None = None

    # Sessions

    def open(self, session_id: str, owner: Owner, peer: str = "") -> Session:
        """Start a session at the initial state. Rows of unary calls on a stateless model have no id and no limit.

        Raises:
            SessionLimit: as many sessions are live as there may be.
            ModelUnloading: the model is being unloaded.
            ServerDraining: the engine has been stopped.
        """
        with self._lock:
            self._check_running()
            slot, generation = self.capacity.take(limited=bool(session_id))
            return Session(session_id, owner, slot, generation, time.monotonic(), peer)

    def open_frames(self, session_id: str, owner: FrameOwner, peer: str) -> Members:
        """Start a stream of frames; it has no members yet.

        Raises:
            ModelUnloading: the model is being unloaded.
            ServerDraining: the engine has been stopped.
        """
        with self._lock:
            self._check_running()
            self._streams += 1
            return Members(session_id, owner, self.capacity, time.monotonic(), peer)

    def _check_running(self) -> None:
        self.capacity.check_open()
        if self._stopped:
            raise ServerDraining("the model is being shut down")

    def end(self, session: Session) -> bool:
        """End `session`: what it has queued is dropped, what is in the engine finishes unanswered.

        Returns:
            False where it had ended already.
        """
        with self._lock:
            if session.ended:
                return False
            session.ended = True
            self._streams -= isinstance(session, Members)
            dropped = len(session.queue)
            session.drop_queue(self.capacity)
            if not session.in_flight:
                session.free(self.capacity)
        if dropped:
            self._on_cancelled(dropped)
        return True

    def close(self) -> None:
        """Take no new sessions: from now on opening one raises ModelUnloading."""
        self.capacity.closed = True

    def reopen(self) -> None:
        """Take new sessions again."""
        self.capacity.closed = False

    def close_if_idle(self) -> bool:
        """`close`, unless there are sessions, streams of frames or rows of unary calls; whether it is done."""
        with self._lock:
            if self.capacity.live or self._streams:
                return False
            self.close()
            return True

    @property
    def live(self) -> int:
        """Sessions that hold a slot, those whose last chunk is still in the engine included."""
        return self.capacity.live

    @property
    def slots_used(self) -> int:
        """State slots taken now."""
        return self.capacity.slots_used

    @property
    def rows_waiting(self) -> int:
        """Rows of unary calls that wait to be run."""
        with self._lock:
            return self.ready.unary_rows

    # Work

    def submit(self, session: Session, work: Work | Frame, soon: Soon | None = None) -> bool:
        """Queue one message of `session`. Work of a session that has ended is dropped.

        Args:
            session: whose it is.
            work: what to do.
            soon: has a function called on the thread that reads messages, after those that have arrived; given
                where this is that thread. The next batch is run there, not on the engine's thread, where `inline`
                says so.

        Returns:
            Whether there is room for another message. Where there is not, `owner.resume` is called once there is.
        """
        with self._lock:
            if session.ended:
                if isinstance(work, Work):
                    work.drop(self.capacity)
                return False
            session.last_used_s = time.monotonic()
            queue = session.queue
            queue.append(work)
            room = len(queue) < self._queue_messages
            session.paused = not room
            book = soon is not None and self._sleeping and not self._booked and self.inline is not None
            self._booked = self._booked or book
            self._make_ready(session)
        if book and soon is not None:
            self._book(soon)
        return room

    def _book(self, soon: Soon) -> None:
        run = self.inline
        if run is None or not soon(lambda: run(soon)):
            self.unbook()

    def take_booked(self) -> Batch | None:
        """Take a batch of sessions in the engine's thread's place, which sleeps until `unbook`; None for none."""
        with self._lock:
            batch = None if self._stopped else self.ready.form_sessions()
            self._taken += batch is not None
        if batch is not None:
            self._resume(batch)
        return batch

    def unbook(self, soon: Soon | None = None) -> None:
        """The booked batch has run. More of it is booked with `soon`, if given; all else is the engine's thread's."""
        with self._lock:
            more = self.ready.sessions and not self._stopped
            again = more and soon is not None and self.inline is not None
            self._booked = again
            if self.ready.any_here or self._stopped:
                self._rouse()
        if again and soon is not None:
            self._book(soon)

    def _rouse(self) -> None:
        """Wake the engine's thread, if it sleeps and nobody runs in its place."""
        if self._sleeping and not self._booked:
            self._sleeping = False
            self._wake.release()

    def nudge(self, members: Members) -> None:
        """Give a stream of frames a turn though it may have no frame, to look for idle members."""
        with self._lock:
            if not members.ended:
                self._make_ready(members)

    def release(self, session: Session, hold: int | None = None) -> None:
        """Let a generation go on that is held under the number `hold`, or is about to be; None: under any."""
        with self._lock:
            session.released = session.released if hold is None else hold
            if session.held and hold in (None, session.held):
                session.held = 0
                if session.queue and not session.ended:
                    self._make_ready(session)

    def _make_ready(self, session: Session) -> None:
        if session.ready or session.in_flight or session.held:
            return
        session.ready = True
        self.ready.add(session)
        self._rouse()

    def take(self) -> Batch | Turn | RingBatch | None:
        """Wait for work and take some: a batch of sessions, or frames' turn; None once stopped."""
        while True:
            if self.ready.rings is not None:
                self.ready.rings.drain()
            with self._lock:
                if self._stopped:
                    return None
                work = self.ready.form()
                self._sleeping = work is None
                self._taken += work is not None
            if work is not None:
                self._resume(work)
                return work
            self._wake.acquire()
            self._sleeping = False  # rings wake it, too

    @property
    def progress(self) -> int | None:
        """A number that each batch changes; None while nothing runs and nothing waits to be run."""
        return None if self._stopped or (self._sleeping and not self._booked) else self._taken

    def _resume(self, work: Batch | Turn | RingBatch) -> None:
        for session in work.sessions:
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
            land(batch, self.capacity, self._make_ready, applied=applied)

    def turned(self, turn: Turn) -> None:
        """The engine is done with `turn`. Streams with more to do are ready again, ended ones free their slots."""
        with self._lock:
            land_turn(turn, self.capacity, self._make_ready)

    def change(self, members: Members, change: Callable[[], None]) -> bool:
        """Have `change` open or end members, on the engine's thread; False, and nothing done, where all have ended."""
        with self._lock:
            if not members.ended:
                change()
            return not members.ended

    def stop(self) -> None:
        """Make `take` return None. Sessions are not ended by this."""
        with self._lock:
            self._stopped = True
            self._rouse()
