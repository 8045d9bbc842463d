"""A model's sessions in a front end: one ring carries messages to the engine process, another brings the replies."""

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
    Head,
    Layout,
    head_of,
    text_at,
    text_records,
    unpack_error,
)
from streamcell.service.sessions.session import Output, Session, SessionListener, Work
from streamcell.service.sessions.shared_capacity import SharedCapacity
from streamcell.service.transport.segments import SEGMENTS, WORTH

from .message_writer import MessageWriter

if TYPE_CHECKING:
    from streamcell.service.batching.inline import AfterArrivals

LOST = "the process that ran the models has died, and the session's state with it"


class RemoteSession(Session):
    """A session of a front end.

    Attributes:
        queue: unanswered messages.
        unwritten: messages that are not wholly written to the ring.
        sent: timesteps written.
        applied: timesteps that the engine has run.
        begun: timesteps written of the first message in `unwritten`.
        starved: True while the session waits for room in the ring.
    """

    __slots__ = ("applied", "begun", "sent", "starved", "unwritten")

    def __init__(
        self, session_id: str, listener: SessionListener, entry: int, slot_version: int, peer: str
    ) -> None:
        super().__init__(session_id, listener, entry, slot_version, time.monotonic(), peer)
        self.unwritten: deque[Work] = deque()
        self.sent = self.applied = self.begun = 0
        self.starved = False


class RemoteBatcher:
    """The parts of a `Batcher` that streams use: sends sessions' messages to the engine process and delivers replies.

    Any thread may call `submit` and `open`; the replying thread calls `deliver_replies` and `flush`.
    """

    def __init__(
        self,
        capacity: SharedCapacity,
        requests: MessageWriter,
        replies: Reader,
        inputs: Layout,
        outputs: Layout,
        queue_messages: int,
        max_chunk: int,
    ) -> None:
        self.capacity = capacity
        self.requests = requests
        self.replies = replies
        self._inputs = inputs
        self._outputs = outputs
        self._queue_messages = queue_messages
        self._lock = threading.Lock()
        self._sessions: dict[int, RemoteSession] = {}
        # What did not fit into the ring, in order: sessions with messages, or records.
        self._backlog: deque[RemoteSession | Records] = deque()
        # A session's timesteps in one write; and its timesteps in flight, one chunk queued behind one that runs. More
        # would delay other sessions' steps.
        self._part = min(max_chunk, inputs.part)
        self._window = 2 * max_chunk
        self._lost = False
        self._publishing = False  # `_publish` is due, after the messages that have arrived
        # Turns the replying thread's calls of `flush`, made once there is room, on or off.
        self.watch_room: Callable[[bool], None] = lambda on: None

    # Sessions

    def open(self, session_id: str, listener: SessionListener, peer: str = "") -> RemoteSession:
        """Start a session at the initial state.

        Raises:
            SessionLimit: the bound on live sessions, over all front ends, is reached.
            EngineLost: there is no engine process at the moment.
        """
        with self._lock:
            if self._lost:
                raise EngineLost(LOST)
            entry, slot_version = self.capacity.take_entry(limited=bool(session_id))
            session = RemoteSession(session_id, listener, entry, slot_version, peer)
            self._sessions[entry] = session
            text = f"{session_id} {peer}".encode()
            self._put(text_records(self._inputs, OPEN, entry, slot_version, text))
        return session

    def end(self, session: RemoteSession) -> bool:
        """End `session`; False if it had ended already."""
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
        if self._backlog or self.requests.room(len(records)) < len(records):
            self._stall(records)
        else:
            self.requests.write(records)

    def _stall(self, what: RemoteSession | Records) -> None:
        self.requests.publish()
        self._backlog.append(what)
        if len(self._backlog) == 1:
            self.watch_room(True)

    @property
    def live(self) -> int:
        """The number of live sessions, over all front ends."""
        return self.capacity.live

    def release(self, session: RemoteSession, hold: int | None = None) -> None:
        """Nothing to do: generations run in the engine process."""

    # Messages

    def submit(self, session: RemoteSession, work: Work, after_arrivals: AfterArrivals | None = None) -> bool:
        """Send one message of `session`. Work of a session that has ended is dropped.

        Returns:
            True if there is room for another. If not, `listener.resume` is called once there is.
        """
        if (
            misfit := self.requests.misfit(work)
        ) is not None:  # every caller checks it; this guards against a bug
            session.listener.fail(misfit)
            return False
        with self._lock:
            if session.ended:
                return False
            session.last_used_s = time.monotonic()
            session.queue.append(work)
            session.unwritten.append(work)
            room = len(session.queue) < self._queue_messages
            session.paused = not room
            self._write_or_wait(session)
            if self.requests.unpublished and not self._publishing:
                # A lone session's client waits for this message. With more sessions, publish arrivals together.
                self._publishing = (
                    after_arrivals is not None and len(self._sessions) > 1 and after_arrivals(self._publish)
                )
                if not self._publishing:
                    self.requests.publish()
        return room

    def _write_or_wait(self, session: RemoteSession) -> None:
        """Write what `session` may have in flight, or make it wait for room."""
        if not session.starved and (self._backlog or not self._write(session)):
            session.starved = True
            self._stall(session)

    def _write(self, session: RemoteSession) -> bool:
        """Write as much of `session` as may be in flight; False if the ring has no room."""
        while session.unwritten:
            work: Work = session.unwritten[0]
            size = min(work.steps - session.begun, self._part)
            out = session.sent - session.applied
            if out and out + size > self._window:
                return True
            if not self.requests.message(session, work, session.begun, size):
                return False
            session.sent += size
            session.begun += size
            if session.begun == work.steps:
                session.unwritten.popleft()
                session.begun = 0
        return True

    def _publish(self) -> None:
        with self._lock:
            self._publishing = False
            if not self._lost:
                self.requests.publish()

    # The replying thread

    def flush(self) -> None:
        """Write what waits for room."""
        with self._lock:
            while self._backlog:
                first = self._backlog[0]
                if isinstance(first, np.ndarray):
                    if self.requests.room(len(first)) < len(first):
                        break
                    self.requests.write(first)
                elif self._write(first):
                    first.starved = False
                else:
                    break
                self._backlog.popleft()
            self.requests.publish()
            if not self._backlog:
                self.watch_room(False)

    def deliver_replies(self) -> None:
        """Read the replies and give them to the sessions' listeners."""
        records = self.replies.read()
        if records is None:
            return
        head = head_of(records)
        entry, last = head["entry"], head["last"].astype(bool)
        fail = head["kind"] == FAIL
        # Timesteps of one message are adjacent: handle each such group at once.
        cut = last | fail
        cut[:-1] |= entry[1:] != entry[:-1]
        cut[-1] = True
        if len(records) < WORTH:
            self._deliver(records, head, cut)
            return
        sessions = self._sessions
        answered = [sessions.get(number) for number in entry[last].tolist()]
        held = SEGMENTS.hold([session.peer for session in answered if session is not None])
        try:
            self._deliver(records, head, cut)
        finally:
            SEGMENTS.release(held)

    def _deliver(self, records: Records, head: Head, cut: Head) -> None:
        """Deliver the messages that end in `records`; `cut`: bool[n], the last record of each group."""
        data = records.tobytes()
        begin = 0
        fields = head.tolist()
        for end in (np.flatnonzero(cut) + 1).tolist():
            if begin >= end:  # inside a text
                continue
            kind, mode, _, is_last, entry_, slot_version, steps, _, index = fields[end - 1]
            session = self._sessions.get(entry_)
            if kind == FAIL:
                text, count = text_at(records, begin, steps)
                begin += count
                if session is not None and session.slot_version == slot_version:
                    session.listener.fail(unpack_error(text))
                continue
            if session is not None and session.slot_version == slot_version:
                outputs: list[bytes] = []
                if mode == Output.NONE.value or (mode == Output.LAST.value and not is_last):
                    pass  # only reports the session's progress
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
                self._write_or_wait(session)
                self.requests.publish()
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
        session.listener.deliver(work, outputs, work.steps_given, step_index)
        if resume:
            session.listener.resume()

    def lose(self) -> None:
        """End every session: the engine process has ended."""
        with self._lock:
            self._lost = True
            self._backlog.clear()
            sessions = list(self._sessions.values())
        for session in sessions:
            session.listener.fail(EngineLost(LOST, session_id=session.session_id))

    def close(self) -> None:
        """Close its descriptors, after `lose`."""
        self.capacity.close()
        self.requests.ring.close()
        self.replies.ring.close()
