"""The sessions of one model that came through front ends, in the engine's process: arrays by seat, and their rings."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from streamcell.service.errors import ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.processes.event_wakeup import EventWakeup
from streamcell.service.processes.ring import Reader, Records, Ring, Writer
from streamcell.service.processes.ring_records import (
    END,
    FAIL,
    OPEN,
    STEP,
    Layout,
    head_of,
    pack_error,
    text_at,
    text_records,
)
from streamcell.service.sessions.session import Session
from streamcell.service.sessions.shared_capacity import SharedCapacity
from streamcell.service.sessions.table import Live, SessionTable

from .ring_batch import RingBatch, choose, one_step_each, rest
from .ring_runner import RingRunner
from .ring_session import RingOwner, RingSession

_PENDING_BYTES = 64 * 1024 * 1024


@dataclass
class _Line:
    """One front end's rings, and replies that found no room."""

    reader: Reader
    writer: Writer
    holder: int
    waiting: deque[Records]
    watched: bool = False


class RingSessions:
    """Reads what front ends ask of one model and writes what they get.

    `gather`, `form` and `answer` are for the engine's thread.
    """

    def __init__(self, model: LoadedModel, sessions: SessionTable) -> None:
        """`model` has been loaded with an `EventWakeup`."""
        wakeup = model.batcher.inline.wakeup
        assert isinstance(model.batcher.capacity, SharedCapacity)
        assert isinstance(wakeup, EventWakeup)
        signature = model.file.signature
        self.model = model
        self.capacity: SharedCapacity = model.batcher.capacity
        self.inputs = Layout.of(signature.inputs, model.max_chunk)
        self.outputs = Layout.of(signature.outputs, model.max_chunk)
        self._sessions = sessions
        self._watch = wakeup.watch
        self._wake = wakeup.release
        self._lines: dict[int, _Line] = {}
        seats = self.capacity.seats
        self.applied = np.zeros(seats, np.int64)
        self.fresh = np.ones(seats, np.bool_)
        self.closing = np.zeros(seats, np.bool_)
        self.slot_version = np.zeros(seats, np.uint32)
        self.queued = np.zeros(seats, np.int64)
        self.used_s = np.zeros(seats, np.float64)
        self.line = np.zeros(seats, np.int64)
        self._live: dict[int, Live[LoadedModel]] = {}
        self._pending: Records = np.zeros((0, self.inputs.record_bytes), np.uint8)
        chunk = max(2 * model.engine.max_batch * min(model.max_chunk, 64), 4096)
        self._most = min(chunk, max(model.engine.max_batch, _PENDING_BYTES // self.inputs.record_bytes))
        self._scratch = np.zeros(seats, np.int64)
        self._stuck = False  # nothing that is pending can run before more has come
        self._lost: deque[int] = deque()
        self._asked: threading.Event | None = None  # set once the rings have been read
        self._lock = threading.Lock()

    def serve(self, allow_non_finite: bool) -> None:
        """Have the model's engine run what comes."""
        model = self.model
        ring_runner = RingRunner(model.engine, model.metrics, allow_non_finite=allow_non_finite)
        model.runner.add(self, RingBatch, ring_runner.run)
        self._wake()

    # A source of jobs for the engine's thread

    def add(self, session: Session) -> None:
        """Never called: its sessions are not the batcher's."""
        raise AssertionError(f"{session.session_id} is no session of the batcher's")

    @property
    def any(self) -> bool:
        """False: what has come is known once `gather` has read it. A readable ring wakes the engine's thread."""
        return False

    # Front ends come and go

    def attach(self, holder: int) -> tuple[Ring, Ring]:
        """Rings for a front end: what it writes, what it reads."""
        asks = Ring.make(self.inputs.capacity, self.inputs.record_bytes)
        replies = Ring.make(self.outputs.capacity, self.outputs.record_bytes)
        with self._lock:
            self._lines[holder] = _Line(Reader(asks), Writer(replies), holder, deque())
        self._watch(asks.written, True)
        return asks, replies

    def lose(self, holder: int) -> None:
        """A front end has gone: the engine's thread ends its sessions."""
        self._lost.append(holder)
        self._wake()

    def _drop_line(self, holder: int) -> None:
        with self._lock:
            line = self._lines.pop(holder)
        self._watch(line.reader.ring.written, False)
        if line.watched:
            self._watch(line.writer.ring.freed, False)
        line.reader.ring.close()
        line.writer.ring.close()
        seats = [seat for seat in self._live if self.line[seat] == holder]
        self.closing[seats] = True
        self._forget_closing()
        for seat in seats:
            live = self._live.pop(seat)
            live.session.ended = True  # its seat comes back with all the others
            self._sessions.forget(live)
            live.model.metrics.session_ended("frontend_lost")
        self.closing[seats] = False
        self.capacity.reclaim(holder)

    def all_read(self, patience_s: float) -> bool:
        """Wait until the engine's thread has taken in what the rings hold now; False if that takes too long."""
        asked = self._asked = threading.Event()
        self._wake()
        return asked.wait(patience_s)

    # The engine's thread

    def gather(self) -> None:
        """Take in what has come through every ring, unless much is pending that can run."""
        asked, read = self._asked, True
        while self._lost:
            self._drop_line(self._lost.popleft())
        for line in list(self._lines.values()):
            if line.waiting:
                with self._lock:
                    self._flush(line)
            if len(self._pending) >= self._most and not self._stuck:
                read = False
            else:
                records = line.reader.read()
                if records is not None:
                    self._take_in(line, records)
                    self._stuck = False
        if asked is not None and read:
            asked.set()
            if self._asked is asked:
                self._asked = None

    def _take_in(self, line: _Line, records: Records) -> None:
        head = head_of(records)
        steps = head["kind"] == STEP
        special = None
        if not steps.all():
            special = np.flatnonzero(~steps).tolist()
            self._open(line, records, special)
            head, records_of_steps = head[steps], records[steps]
        else:
            records_of_steps = records
        if len(head):
            seat = head["seat"]
            self.used_s[seat] = head["stamp"]
            np.add.at(self.queued, seat, head["first"])
            have = self._pending
            self._pending = np.concatenate((have, records_of_steps)) if len(have) else records_of_steps
        if special is not None:
            self._end(records, special)

    def _open(self, line: _Line, records: Records, places: list[int]) -> None:
        """Sessions begin: a few lines of Python a session, not a step."""
        head = head_of(records)
        skip = 0
        for at in places:
            if at < skip or head["kind"][at] != OPEN:
                continue
            seat, slot_version = int(head["seat"][at]), int(head["slot_version"][at])
            text, number = text_at(records, at, int(head["steps"][at]))
            skip = at + number
            session_id, _, peer = text.decode().partition(" ")
            self.closing[seat] = False
            self.slot_version[seat] = slot_version
            self.queued[seat] = 0
            self.line[seat] = line.holder
            owner = RingOwner(self, seat, slot_version)
            session = RingSession(session_id or secrets.token_hex(8), owner, self, seat, slot_version, peer)
            self._live[seat] = self._sessions.adopt(session, self.model)

    def _end(self, records: Records, places: list[int]) -> None:
        """Sessions end: what of them is pending is dropped, and their seats are free."""
        head = head_of(records)
        ended = [at for at in places if head["kind"][at] == END]
        if not ended:
            return
        seats = head["seat"][ended]
        self.closing[seats] = True
        self._forget_closing()
        dropped = int(head["index"][ended].sum())
        if dropped:
            self.model.metrics.work_cancelled(dropped)
        for seat in seats.tolist():
            live = self._live.pop(seat, None)
            if live is not None:
                self._sessions.release(live)

    def _forget_closing(self) -> None:
        """Drop what is pending of sessions that have ended."""
        if not len(self._pending):
            return
        head = head_of(self._pending)
        gone = self.closing[head["seat"]]
        if gone.any():
            messages = int(head["last"][gone].sum())
            np.subtract.at(self.queued, head["seat"][gone], head["last"][gone])
            self._pending = self._pending[~gone]
            self.model.metrics.work_cancelled(messages)

    def form(self) -> RingBatch | None:
        """What runs next; None for nothing."""
        if len(self._pending):
            self._forget_closing()
        if not len(self._pending):
            return None
        records = self._pending
        model = self.model
        head = head_of(records)
        if one_step_each(head, self._scratch):
            self._stuck = False
            most = model.engine.max_batch
            records, head, self._pending = records[:most], head[:most], records[most:]
            rows = np.arange(len(head))
            seats = head["seat"].astype(np.int64)
            return RingBatch(self, records, head, rows, np.zeros_like(rows), seats, np.ones_like(rows))
        chosen = choose(
            records,
            max_batch=model.engine.max_batch,
            max_chunk=model.max_chunk,
            ragged=model.file.signature.lengths is not None,
            coalesce=bool(model.file.signature.states),
        )
        self._stuck = chosen is None
        if chosen is None:
            return None
        at, row, place, seats, counts = chosen
        taken = records[at]
        self._pending = rest(records, at, seats)
        return RingBatch(self, taken, head_of(taken), row, place, seats, counts)

    # Answers

    def answer(self, records: Records) -> None:
        """Send replies, except those of sessions that have been failed meanwhile."""
        with self._lock:
            head = head_of(records)
            gone = self.closing[head["seat"]]
            if gone.any():
                records, head = records[~gone], head[~gone]
            if not len(records):
                return
            lines = self.line[head["seat"]]
            if (lines == lines[0]).all():
                self._send(int(lines[0]), records)
                return
            for line in np.unique(lines).tolist():
                self._send(line, records[lines == line])

    def fail(self, seat: int, slot_version: int, error: ServiceError) -> None:
        """Run nothing more of a session, and have its front end end it."""
        with self._lock:
            live = self._live.get(seat)
            if live is None or live.session.slot_version != slot_version or self.closing[seat]:
                return
            self.closing[seat] = True
            records = text_records(self.outputs, FAIL, seat, slot_version, pack_error(error))
            self._send(int(self.line[seat]), records)

    def _send(self, holder: int, records: Records) -> None:
        line = self._lines.get(holder)
        if line is None:
            return
        part = self.outputs.part
        line.waiting.extend(records[at : at + part] for at in range(0, len(records), part))
        self._flush(line)

    def _flush(self, line: _Line) -> None:
        """Write what there is room for; the engine's thread comes back for the rest."""
        while line.waiting and line.writer.room(len(line.waiting[0])) >= len(line.waiting[0]):
            line.writer.write(line.waiting.popleft())
        if line.watched != bool(line.waiting):
            line.watched = bool(line.waiting)
            self._watch(line.writer.ring.freed, line.watched)
