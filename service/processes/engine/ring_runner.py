"""Runs what came through rings: from records to the staging buffers and back, with no line of Python a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np

from streamcell.service.batching.guarded_run import GuardedRun, Later, RunTimes
from streamcell.service.engine.engine import Engine
from streamcell.service.engine.rows import INITIAL_ROW
from streamcell.service.engine.staging import Staged, resting, steps_of
from streamcell.service.errors import RefusedByModel, ServiceError, run_failure
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.processes.ring import Records
from streamcell.service.processes.ring_records import HEADER, STEP
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.value_check import ValueCheck

from .ring_batch import RingBatch


class RingRunner:
    """Runs a model's batches of records: the `RowKind` of a `RingBatch`. For the engine's thread."""

    def __init__(self, engine: Engine, metrics: ModelMetrics, *, allow_non_finite: bool) -> None:
        self._engine = engine
        self._metrics = metrics
        self._check = ValueCheck(engine.signature, allow_non_finite=allow_non_finite)
        self._input_bytes = [tensor.step_bytes for tensor in engine.signature.inputs]
        # Behind a row's last step stands what the model's tables have: zeros may be no index of them.
        self._resting = [
            np.frombuffer(resting(tensor).tobytes(), np.uint8) for tensor in engine.signature.inputs
        ]
        self._output_bytes = [tensor.step_bytes for tensor in engine.signature.outputs]
        self._stateful = bool(engine.signature.states)
        self._guarded = GuardedRun(engine, metrics, self._check)

    def run(self, batch: RingBatch) -> None:
        """Run a batch and answer it."""
        self._guarded(self, batch)

    # What `GuardedRun` asks for

    def count(self, rows: RingBatch) -> int:
        """How many rows there are."""
        return len(rows.seats)

    def fill(self, rows: RingBatch) -> Staged:
        """Copy the records into the staging buffers."""
        used = len(rows.seats)
        staged = self._engine.stage(used, rows.steps)
        at = rows.row * staged.steps + rows.place
        whole = len(at) == used * staged.steps
        for view, size, rest, (begin, end) in zip(
            staged.inputs, self._input_bytes, self._resting, rows.source.inputs.places, strict=True
        ):
            target = steps_of(view, size)
            if whole:
                target[: len(at)] = rows.records[:, begin:end]
            else:
                target[: used * staged.steps] = rest  # another session's input of an earlier run
                target[at] = rows.records[:, begin:end]
        staged.lengths[:used] = rows.counts
        if self._stateful:
            slots = rows.seats + self._engine.pool.first_slot
            staged.write[:used, 0] = slots
            staged.read[:used] = np.where(rows.source.fresh[rows.seats], INITIAL_ROW, slots)
        self._engine.pad(staged, used)
        return staged

    def completed(self, rows: RingBatch, staged: Staged, times: RunTimes) -> tuple[int, int]:
        """Advance the sessions, and send the outputs that were asked for."""
        batch, source, head = rows, rows.source, rows.head
        first, last = head["first"].astype(bool), head["last"].astype(bool)
        index = source.applied[batch.seats][batch.row] + batch.place + 1
        source.applied[batch.seats] += batch.counts
        source.fresh[batch.seats] = False
        np.subtract.at(source.queued, head["seat"], head["last"])
        # A row's last timestep says how far the session is, even if its message goes on.
        told = last | (head["mode"] == Output.ALL.value) | (batch.place + 1 == batch.counts[batch.row])
        source.answer(self._replies(batch, staged, index, told))
        now_s = time.perf_counter()
        stamps = head["stamp"]
        self._metrics.delivered(
            len(head),
            len(batch.seats),
            (batch.taken_s - stamps[first]).tolist(),
            (now_s - stamps[last]).tolist(),
        )
        return int(np.count_nonzero(first | (batch.place == 0))), int(np.count_nonzero(last))

    def _replies(self, batch: RingBatch, staged: Staged, index: np.ndarray, wanted: np.ndarray) -> Records:
        """A record for each timestep that `wanted`, bool[n], names."""
        layout = batch.source.outputs
        head = batch.head[wanted]
        replies = np.zeros((len(head), layout.record_bytes), np.uint8)
        out = replies[:, : HEADER.size]
        out[:] = np.ascontiguousarray(head).view(np.uint8).reshape(-1, HEADER.size)
        fields = np.ndarray(len(head), head.dtype, replies, strides=(layout.record_bytes,))
        fields["kind"] = STEP
        fields["index"] = index[wanted]
        at = (batch.row * staged.steps + batch.place)[wanted]
        for view, size, (begin, end) in zip(staged.outputs, self._output_bytes, layout.places, strict=True):
            replies[:, begin:end] = steps_of(view, size)[at]
        return replies

    # What goes wrong: a row at a time

    def apart(self, rows: RingBatch) -> Iterator[RingBatch]:
        """The rows one by one."""
        for row in range(len(rows.seats)):
            yield rows.keep(rows.row == row)

    def without(self, rows: RingBatch, bad: list[int], later: Later) -> RingBatch:
        """The batch without the messages that hold bad values and what follows them; those before stay."""
        keep = np.ones(len(rows.row), np.bool_)
        for row in bad:
            places = np.flatnonzero(rows.row == row)
            begins = [
                *np.flatnonzero(rows.head["first"][places] | (rows.place[places] == 0)).tolist(),
                len(places),
            ]
            for begin, end in pairwise(begins):
                if (error := self._bad(rows, places[begin:end])) is not None:
                    keep[places[begin:]] = False
                    version = int(rows.head["slot_version"][places[0]])
                    later.append(partial(rows.source.fail, int(rows.seats[row]), version, error))
                    break
        return rows.keep(keep)

    def _bad(self, rows: RingBatch, places: np.ndarray) -> ServiceError | None:
        """What is wrong with a message, or with the part of one that follows what ran of it before."""
        payloads = tuple(
            rows.records[places, begin:end].tobytes() for begin, end in rows.source.inputs.places
        )
        work = Work(payloads, len(places), Output.NONE, 0, 0.0)
        return self._check.first_bad(work, steps_before=int(rows.head["index"][places[0]]))

    def refused(self, rows: RingBatch, cause: Exception, later: Later) -> None:
        """A row that failed alone is refused."""
        self._fail_all(rows, RefusedByModel.because(cause), later)

    def failed(self, rows: RingBatch, cause: Exception) -> None:
        """Each session of the batch ends, so no state that the run may have written is read again."""
        error = run_failure(cause)
        messages = int(np.count_nonzero(rows.head["first"].astype(bool) | (rows.place == 0)))
        # The first of each session is counted by its front end.
        self._metrics.request_failed(error, messages - len(rows.seats))
        now: Later = []
        self._fail_all(rows, error, now)
        for fail in now:
            fail()

    def _fail_all(self, rows: RingBatch, error: ServiceError, later: Later) -> None:
        """Have every session of the batch end with `error`."""
        versions = rows.head["slot_version"][np.flatnonzero(rows.place == 0)].tolist()
        for seat, version in zip(rows.seats.tolist(), versions, strict=True):
            later.append(partial(rows.source.fail, seat, version, error))
