"""One model's sessions of front ends, in the engine process: arrays by table entry, and the front ends' rings."""

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
from .ring_session import RingListener, RingSession

_PENDING_BYTES = 64 * 1024 * 1024


@dataclass
class _Rings:
    """One front end's rings, and the replies that did not fit."""

    reader: Reader
    writer: Writer
    process_number: int
    waiting: deque[Records]
    watched: bool = False


class RingSessions:
    """Reads front ends' requests to one model and writes the replies: a `Source` of batches.

    `gather`, `form` and `answer` are for the engine thread.

    Attributes:
        applied, queued: int64[entries], timesteps applied to a session; its unanswered messages.
        fresh, closing: bool[entries], no step was applied yet; the session is ending, so its records are dropped.
        slot_version: uint32[entries], the version of the entry that the session took.
        used_s: float64[entries], when the last message arrived, by `time.perf_counter`.
        frontend: int64[entries], the process number of the session's front end.
        spent: float64[entries, 3], what runs have spent on a message that has more to come, as `Computed`.
    """

    def __init__(self, model: LoadedModel, sessions: SessionTable) -> None:
        """`model` was loaded with an `EventWakeup`."""
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
        self._rings: dict[int, _Rings] = {}
        entries = self.capacity.entries
        self.applied = np.zeros(entries, np.int64)
        self.fresh = np.ones(entries, np.bool_)
        self.closing = np.zeros(entries, np.bool_)
        self.slot_version = np.zeros(entries, np.uint32)
        self.queued = np.zeros(entries, np.int64)
        self.used_s = np.zeros(entries, np.float64)
        self.frontend = np.zeros(entries, np.int64)
        self.spent = np.zeros((entries, 3), np.float64)
        self._live: dict[int, Live[LoadedModel]] = {}
        self._pending: Records = np.zeros((0, self.inputs.record_bytes), np.uint8)
        chunk = max(2 * model.engine.max_batch * min(model.max_chunk, 64), 4096)
        self._most = min(chunk, max(model.engine.max_batch, _PENDING_BYTES // self.inputs.record_bytes))
        self._scratch = np.zeros(entries, np.int64)
        self._stuck = False  # no pending record can run before more arrive
        self._lost: deque[int] = deque()
        self._asked: deque[threading.Event] = deque()  # each is set once the rings have been read
        self._lock = threading.Lock()

    def serve(self, allow_non_finite: bool) -> None:
        """Register with the model's runner, which then runs what `form` returns."""
        model = self.model
        ring_runner = RingRunner(model.engine, model.metrics, allow_non_finite=allow_non_finite)
        model.runner.add(self, RingBatch, ring_runner.run)
        self._wake()

    # A source of jobs for the engine thread

    def add(self, session: Session) -> None:
        """Never called: these sessions are not the batcher's."""
        raise AssertionError(f"{session.session_id} is no session of the batcher's")

    @property
    def any(self) -> bool:
        """False: `gather` finds out what there is. A readable ring wakes the engine thread."""
        return False

    # Front ends begin and end

    def attach(self, process_number: int) -> tuple[Ring, Ring]:
        """Make the two rings of a front end: the one it writes, the one it reads."""
        requests = Ring.make(self.inputs.capacity, self.inputs.record_bytes)
        replies = Ring.make(self.outputs.capacity, self.outputs.record_bytes)
        with self._lock:
            self._rings[process_number] = _Rings(Reader(requests), Writer(replies), process_number, deque())
        self._watch(requests.written, True)
        return requests, replies

    def lose(self, process_number: int) -> None:
        """Note that a front end has ended: the engine thread ends its sessions."""
        self._lost.append(process_number)
        self._wake()

    def _drop_frontend(self, process_number: int) -> None:
        with self._lock:
            rings = self._rings.pop(process_number)
        self._watch(rings.reader.ring.written, False)
        if rings.watched:
            self._watch(rings.writer.ring.freed, False)
        rings.reader.ring.close()
        rings.writer.ring.close()
        entries = [entry for entry in self._live if self.frontend[entry] == process_number]
        self.closing[entries] = True
        self._forget_closing()
        for entry in entries:
            live = self._live.pop(entry)
            live.session.ended = True  # `reclaim` frees its entry with all the others
            self._sessions.forget(live)
            live.model.metrics.session_ended("frontend_lost")
        self.closing[entries] = False
        self.capacity.reclaim(process_number)

    def all_read(self, patience_s: float) -> bool:
        """Wait until the engine thread has read what the rings hold now; False if that takes too long."""
        asked = threading.Event()
        self._asked.append(asked)
        self._wake()
        return asked.wait(patience_s)

    # The engine thread

    def gather(self) -> None:
        """Read all rings, unless many pending records can run already."""
        asked, read = len(self._asked), True
        while self._lost:
            self._drop_frontend(self._lost.popleft())
        for rings in list(self._rings.values()):
            if rings.waiting:
                with self._lock:
                    self._flush(rings)
            if len(self._pending) >= self._most and not self._stuck:
                read = False
            else:
                records = rings.reader.read()
                if records is not None:
                    self._take_in(rings, records)
                    self._stuck = False
        if asked and read:
            for _ in range(asked):
                self._asked.popleft().set()

    def _take_in(self, rings: _Rings, records: Records) -> None:
        head = head_of(records)
        steps = head["kind"] == STEP
        special = None
        if not steps.all():
            special = np.flatnonzero(~steps).tolist()
            self._open(rings, records, special)
            head, records_of_steps = head[steps], records[steps]
        else:
            records_of_steps = records
        if len(head):
            entry = head["entry"]
            self.used_s[entry] = head["stamp"]
            np.add.at(self.queued, entry, head["first"])
            have = self._pending
            self._pending = np.concatenate((have, records_of_steps)) if len(have) else records_of_steps
        if special is not None:
            self._end(records, special)

    def _open(self, rings: _Rings, records: Records, places: list[int]) -> None:
        """Open sessions. This costs Python per session, not per step."""
        head = head_of(records)
        skip = 0
        for at in places:
            if at < skip or head["kind"][at] != OPEN:
                continue
            entry, slot_version = int(head["entry"][at]), int(head["slot_version"][at])
            text, number = text_at(records, at, int(head["steps"][at]))
            skip = at + number
            session_id, _, peer = text.decode().partition(" ")
            self.closing[entry] = False
            self.slot_version[entry] = slot_version
            self.queued[entry] = 0
            self.frontend[entry] = rings.process_number
            listener = RingListener(self, entry, slot_version)
            session = RingSession(
                session_id or secrets.token_hex(8), listener, self, entry, slot_version, peer
            )
            self._live[entry] = self._sessions.adopt(session, self.model)

    def _end(self, records: Records, places: list[int]) -> None:
        """End sessions: drop their pending records and free their entries."""
        head = head_of(records)
        ended = [at for at in places if head["kind"][at] == END]
        if not ended:
            return
        entries = head["entry"][ended]
        self.closing[entries] = True
        self._forget_closing()
        dropped = int(head["index"][ended].sum())
        if dropped:
            self.model.metrics.work_cancelled(dropped)
        for entry in entries.tolist():
            live = self._live.pop(entry, None)
            if live is not None:
                self._sessions.release(live)

    def _forget_closing(self) -> None:
        """Drop pending records of ended sessions."""
        if not len(self._pending):
            return
        head = head_of(self._pending)
        gone = self.closing[head["entry"]]
        if gone.any():
            messages = int(head["last"][gone].sum())
            np.subtract.at(self.queued, head["entry"][gone], head["last"][gone])
            self._pending = self._pending[~gone]
            self.model.metrics.work_cancelled(messages)

    def form(self) -> RingBatch | None:
        """The next batch; None if nothing can run."""
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
            entries = head["entry"].astype(np.int64)
            return RingBatch(self, records, head, rows, np.zeros_like(rows), entries, np.ones_like(rows))
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
        at, row, place, entries, counts = chosen
        taken = records[at]
        self._pending = rest(records, at, entries)
        return RingBatch(self, taken, head_of(taken), row, place, entries, counts)

    # Answers

    def answer(self, records: Records) -> None:
        """Send replies, except those of sessions that have failed since."""
        with self._lock:
            head = head_of(records)
            gone = self.closing[head["entry"]]
            if gone.any():
                records, head = records[~gone], head[~gone]
            if not len(records):
                return
            frontends = self.frontend[head["entry"]]
            if (frontends == frontends[0]).all():
                self._send(int(frontends[0]), records)
                return
            for frontend in np.unique(frontends).tolist():
                self._send(frontend, records[frontends == frontend])

    def fail(self, entry: int, slot_version: int, error: ServiceError) -> None:
        """Run no more steps of a session, and tell its front end to end it."""
        with self._lock:
            live = self._live.get(entry)
            if live is None or live.session.slot_version != slot_version or self.closing[entry]:
                return
            self.closing[entry] = True
            live.why = error.reason.lower()
            records = text_records(self.outputs, FAIL, entry, slot_version, pack_error(error))
            self._send(int(self.frontend[entry]), records)

    def _send(self, process_number: int, records: Records) -> None:
        rings = self._rings.get(process_number)
        if rings is None:
            return
        part = self.outputs.part
        rings.waiting.extend(records[at : at + part] for at in range(0, len(records), part))
        self._flush(rings)

    def _flush(self, rings: _Rings) -> None:
        """Write the replies that fit; the engine thread writes the rest later."""
        while rings.waiting and rings.writer.room(len(rings.waiting[0])) >= len(rings.waiting[0]):
            rings.writer.write(rings.waiting.popleft())
        if rings.watched != bool(rings.waiting):
            rings.watched = bool(rings.waiting)
            self._watch(rings.writer.ring.freed, rings.watched)
