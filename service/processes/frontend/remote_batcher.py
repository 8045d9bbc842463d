"""A model's sessions in a front end: messages go to the engine's process by one ring, replies come by another."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from streamcell.service.errors import EngineLost
from streamcell.service.processes.ring import Reader, Records
from streamcell.service.processes.ring_records import (
    END,
    FAIL,
    OPEN,
    Layout,
    head_of,
    text_at,
    text_records,
    unpack_error,
)
from streamcell.service.sessions.session import Output, Owner, Session, Work
from streamcell.service.sessions.shared_capacity import SharedCapacity

from .message_writer import MessageWriter

if TYPE_CHECKING:
    from streamcell.service.batching.inline import Soon

LOST = "the process that ran the models has died, and the session's state with it"


class RemoteSession(Session):
    """A session of a front end. `queue` holds the messages that are not answered, `unwritten` those not yet written.

    `sent` counts the timesteps that were written, `applied` those that the engine has run, `begun` those written of the
    first message that is not wholly written.
    """

    __slots__ = ("applied", "begun", "sent", "starved", "unwritten")

    def __init__(self, session_id: str, owner: Owner, seat: int, slot_version: int, peer: str) -> None:
        super().__init__(session_id, owner, seat, slot_version, time.monotonic(), peer)
        self.unwritten: deque[Work] = deque()
        self.sent = self.applied = self.begun = 0
        self.starved = False  # waits for room in the ring


class RemoteBatcher:
    """What streams use of a `Batcher`: sessions and their messages go to the engine's process, replies come from it.

    `submit` and `open` may be called from any thread; `came` and `flush` are the replying thread's.
    """

    def __init__(
        self,
        capacity: SharedCapacity,
        asks: MessageWriter,
        replies: Reader,
        inputs: Layout,
        outputs: Layout,
        queue_messages: int,
        max_chunk: int,
    ) -> None:
        self.capacity = capacity
        self.asks = asks
        self.replies = replies
        self._inputs = inputs
        self._outputs = outputs
        self._queue_messages = queue_messages
        self._lock = threading.Lock()
        self._sessions: dict[int, RemoteSession] = {}
        # What found no room in the ring, in order: sessions with messages, or records.
        self._backlog: deque[RemoteSession | Records] = deque()
        # Of one session, in timesteps: what goes at once; and what may be on its way, one chunk behind the one that
        # runs. More would wait where others' steps have to get past it.
        self._part = min(max_chunk, inputs.part)
        self._window = 2 * max_chunk
        self._lost = False
        self._telling = False  # the engine will be told of what is written, behind what has arrived
        # Has the replying thread call `flush` once there is room, or no longer.
        self.watch_room: Callable[[bool], None] = lambda on: None

    # Sessions

    def open(self, session_id: str, owner: Owner, peer: str = "") -> RemoteSession:
        """Start a session at the initial state.

        Raises:
            SessionLimit: as many sessions are live as there may be, over all front ends.
            EngineLost: there is no engine at the moment.
        """
        with self._lock:
            if self._lost:
                raise EngineLost(LOST)
            seat, slot_version = self.capacity.take_seat(limited=bool(session_id))
            session = RemoteSession(session_id, owner, seat, slot_version, peer)
            self._sessions[seat] = session
            text = f"{session_id} {peer}".encode()
            self._put(text_records(self._inputs, OPEN, seat, slot_version, text))
        return session

    def end(self, session: RemoteSession) -> bool:
        """End `session`; False where it had ended already."""
        with self._lock:
            if session.ended:
                return False
            session.ended = True
            session.queue.clear()
            self._sessions.pop(session.slot, None)
            dropped = len(session.unwritten)
            session.unwritten.clear()
            if session.starved:
                self._backlog = deque(each for each in self._backlog if each is not session)
                if not self._backlog:
                    self.watch_room(False)
            if not self._lost:
                self._put(text_records(self._inputs, END, session.slot, session.slot_version, index=dropped))
        return True

    def _put(self, records: Records) -> None:
        if self._backlog or self.asks.room(len(records)) < len(records):
            self._stall(records)
        else:
            self.asks.write(records)

    def _stall(self, what: RemoteSession | Records) -> None:
        self.asks.tell()
        self._backlog.append(what)
        if len(self._backlog) == 1:
            self.watch_room(True)

    @property
    def live(self) -> int:
        """Sessions that hold a seat, over all front ends."""
        return self.capacity.live

    def release(self, session: RemoteSession, hold: int | None = None) -> None:
        """Nothing here is held: generations run where the engine is."""

    # Messages

    def submit(self, session: RemoteSession, work: Work, soon: Soon | None = None) -> bool:
        """Send one message of `session`. Work of a session that has ended is dropped.

        Returns:
            Whether there is room for another; where there is not, `owner.resume` is called once there is.
        """
        if (misfit := self.asks.misfit(work)) is not None:  # every entrance checks that; if one forgets to
            session.owner.fail(misfit)
            return False
        with self._lock:
            if session.ended:
                return False
            session.last_used_s = time.monotonic()
            session.queue.append(work)
            session.unwritten.append(work)
            room = len(session.queue) < self._queue_messages
            session.paused = not room
            self._go_on(session)
            if self.asks.untold and not self._telling:
                # One session's client waits for it; with more, what arrives together is told of together.
                self._telling = soon is not None and len(self._sessions) > 1 and soon(self._tell)
                if not self._telling:
                    self.asks.tell()
        return room

    def _go_on(self, session: RemoteSession) -> None:
        """Write of `session` what it may, or have it wait for room."""
        if not session.starved and (self._backlog or not self._write(session)):
            session.starved = True
            self._stall(session)

    def _write(self, session: RemoteSession) -> bool:
        """Write as much of `session` as may be on its way; False where the ring has no room for it."""
        while session.unwritten:
            work: Work = session.unwritten[0]
            size = min(work.steps - session.begun, self._part)
            out = session.sent - session.applied
            if out and out + size > self._window:
                return True
            if not self.asks.message(session, work, session.begun, size):
                return False
            session.sent += size
            session.begun += size
            if session.begun == work.steps:
                session.unwritten.popleft()
                session.begun = 0
        return True

    def _tell(self) -> None:
        with self._lock:
            self._telling = False
            if not self._lost:
                self.asks.tell()

    # The replying thread

    def flush(self) -> None:
        """Write what waited for room."""
        with self._lock:
            while self._backlog:
                first = self._backlog[0]
                if isinstance(first, np.ndarray):
                    if self.asks.room(len(first)) < len(first):
                        break
                    self.asks.write(first)
                elif self._write(first):
                    first.starved = False
                else:
                    break
                self._backlog.popleft()
            self.asks.tell()
            if not self._backlog:
                self.watch_room(False)

    def came(self) -> None:
        """Hand the replies that have come to the sessions' owners."""
        records = self.replies.read()
        if records is None:
            return
        head = head_of(records)
        seat, last = head["seat"], head["last"].astype(bool)
        fail = head["kind"] == FAIL
        # Timesteps of one message stand in a row: one look at each such run.
        cut = last | fail
        cut[:-1] |= seat[1:] != seat[:-1]
        cut[-1] = True
        data = records.tobytes()
        begin = 0
        fields = head.tolist()
        for end in (np.flatnonzero(cut) + 1).tolist():
            if begin >= end:  # within a text
                continue
            kind, mode, _, is_last, seat_, slot_version, steps, _, index = fields[end - 1]
            session = self._sessions.get(seat_)
            if kind == FAIL:
                text, count = text_at(records, begin, steps)
                begin += count
                if session is not None and session.slot_version == slot_version:
                    session.owner.fail(unpack_error(text))
                continue
            if session is not None and session.slot_version == slot_version:
                outputs: list[bytes] = []
                if mode == Output.NONE.value or (mode == Output.LAST.value and not is_last):
                    pass  # only tells how far the engine is
                elif mode == Output.LAST.value or end - begin == 1:
                    at = (end - 1) * self._outputs.record_bytes
                    outputs = [data[at + first : at + to] for first, to in self._outputs.places]
                else:
                    outputs = [records[begin:end, first:to].tobytes() for first, to in self._outputs.places]
                self._reply(session, outputs, index, last=bool(is_last))
            begin = end

    def _reply(self, session: RemoteSession, outputs: list[bytes], step_index: int, *, last: bool) -> None:
        with self._lock:
            if session.ended:
                return
            session.applied = step_index
            if session.unwritten:
                self._go_on(session)
                self.asks.tell()
            work: Work = session.queue[0]
            if work.output is Output.ALL and (not last or work.pieces is not None):
                if work.pieces is None:
                    work.pieces = [[] for _ in outputs]
                for pieces, tensor in zip(work.pieces, outputs, strict=True):
                    pieces.append(tensor)
                outputs = [b"".join(pieces) for pieces in work.pieces] if last else []
            if not last:
                return
            session.queue.popleft()
            session.step_index = step_index
            session.fresh = False
            resume = session.paused and len(session.queue) < self._queue_messages
            session.paused = session.paused and not resume
        session.owner.deliver(work, outputs, work.steps_given, step_index)
        if resume:
            session.owner.resume()

    def lose(self) -> None:
        """The engine's process has gone: every session ends."""
        with self._lock:
            self._lost = True
            self._backlog.clear()
            sessions = list(self._sessions.values())
        for session in sessions:
            session.owner.fail(EngineLost(LOST, session_id=session.session_id))

    def close(self) -> None:
        """Close its descriptors. It has been lost."""
        self.capacity.close()
        self.asks.ring.close()
        self.replies.ring.close()
