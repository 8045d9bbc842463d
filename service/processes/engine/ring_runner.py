"""Runs batches of ring records: copies records to the staging buffers and back, with no Python code per step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np

from streamcell.service.batching.guarded_run import GuardedRun, Later
from streamcell.service.engine.engine import Engine
from streamcell.service.engine.staging import Staged, resting, steps_of
from streamcell.service.errors import RefusedByModel, ServiceError, run_failure
from streamcell.service.graph.rows import INITIAL_ROW
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import Computed, RunTally
from streamcell.service.processes.ring import Records
from streamcell.service.processes.ring_records import HEADER, STEP
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.value_check import ValueCheck

from .ring_batch import RingBatch, Truths


class RingRunner:
    """Runs a model's batches of records: the `RowKind` of a `RingBatch`. For the engine thread."""

    def __init__(self, engine: Engine, metrics: ModelMetrics, *, allow_non_finite: bool) -> None:
        self._engine = engine
        self._metrics = metrics
        self._check = ValueCheck(engine.signature, allow_non_finite=allow_non_finite)
        self._input_bytes = [tensor.step_bytes for tensor in engine.signature.inputs]
        # Padding after a row's last step must be a valid index of the model's tables: zero may not be one.
        self._resting = [
            np.frombuffer(resting(tensor).tobytes(), np.uint8) for tensor in engine.signature.inputs
        ]
        self._output_bytes = [tensor.step_bytes for tensor in engine.signature.outputs]
        self._stateful = bool(engine.signature.states)
        self._guarded = GuardedRun(engine, metrics, self._check)

    def run(self, batch: RingBatch) -> None:
        """Run a batch and send its replies."""
        self._guarded(self, batch)

    # `RowKind`, for `GuardedRun`

    def count(self, rows: RingBatch) -> int:
        """The number of rows."""
        return len(rows.entries)

    def fill(self, rows: RingBatch) -> Staged:
        """Copy the records into the staging buffers."""
        used = len(rows.entries)
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
                target[: used * staged.steps] = rest  # overwrites other sessions' inputs of an earlier run
                target[at] = rows.records[:, begin:end]
        staged.lengths[:used] = rows.counts
        if self._stateful:
            slots = rows.entries + self._engine.pool.first_slot
            staged.write[:used, 0] = slots
            staged.read[:used] = np.where(rows.source.fresh[rows.entries], INITIAL_ROW, slots)
        self._engine.pad(staged, used)
        return staged

    def completed(self, rows: RingBatch, staged: Staged, run: RunTally) -> None:
        """Advance the sessions, and send the outputs that the messages ask for."""
        batch, source, head = rows, rows.source, rows.head
        first, last = head["first"].astype(bool), head["last"].astype(bool)
        index = source.applied[batch.entries][batch.row] + batch.place + 1
        source.applied[batch.entries] += batch.counts
        source.fresh[batch.entries] = False
        np.subtract.at(source.queued, head["entry"], head["last"])
        # A row's last timestep reports the session's progress, even if its message continues.
        told = last | (head["mode"] == Output.ALL.value) | (batch.place + 1 == batch.counts[batch.row])
        replies = self._replies(batch, staged, index, told)
        now_s = time.perf_counter()
        source.answer(replies)
        stamps = head["stamp"]
        run.steps, run.chunks = len(head), len(batch.entries)
        run.waits_s = (batch.taken_s - stamps[first]).tolist()
        run.latencies_s = (now_s - stamps[last]).tolist()
        run.inferences = len(run.latencies_s)
        run.output_s = run.inferences * (now_s - run.ended_s)
        if not (first.all() and last.all()):
            self._share(batch, first, last, run)

    def _share(self, batch: RingBatch, first: Truths, last: Truths, run: RunTally) -> None:
        """Count what earlier runs spent on the messages that end in this one, and keep it of those that continue."""
        spent = batch.source.spent
        continued = ~first[batch.place == 0]
        ends = np.bincount(batch.row, weights=last, minlength=len(batch.counts)) > 0
        lasting = ~last[batch.place + 1 == batch.counts[batch.row]]
        run.earlier = Computed(*spent[batch.entries[continued & ends]].sum(axis=0).tolist())
        before = spent[batch.entries[lasting]] * (continued & ~ends)[lasting, None]
        spent[batch.entries[lasting]] = before + run.spent()

    def _replies(self, batch: RingBatch, staged: Staged, index: np.ndarray, wanted: np.ndarray) -> Records:
        """A record for each timestep for which `wanted`, bool[n], holds."""
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

    # Failures, row by row

    def apart(self, rows: RingBatch) -> Iterator[RingBatch]:
        """The rows one by one."""
        for row in range(len(rows.entries)):
            yield rows.keep(rows.row == row)

    def without(self, rows: RingBatch, bad: list[int], later: Later) -> RingBatch:
        """The batch without each session's first message with bad values and all after it."""
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
                    later.append(partial(rows.source.fail, int(rows.entries[row]), version, error))
                    break
        return rows.keep(keep)

    def _bad(self, rows: RingBatch, places: np.ndarray) -> ServiceError | None:
        """The error of a message, or of the part of one that remains; None if its values are good."""
        payloads = tuple(
            rows.records[places, begin:end].tobytes() for begin, end in rows.source.inputs.places
        )
        work = Work(payloads, len(places), Output.NONE, 0, 0.0)
        return self._check.first_bad(work, steps_before=int(rows.head["index"][places[0]]))

    def refused(self, rows: RingBatch, cause: Exception, later: Later) -> None:
        """Refuse a row that failed alone."""
        self._fail_all(rows, RefusedByModel.because(cause), later)

    def failed(self, rows: RingBatch, cause: Exception) -> None:
        """End each session of the batch, so that states which the run may have written are never read."""
        error = run_failure(cause)
        messages = int(np.count_nonzero(rows.head["first"].astype(bool) | (rows.place == 0)))
        # The front end counts the first message of each session.
        self._metrics.request_failed(error, messages - len(rows.entries))
        now: Later = []
        self._fail_all(rows, error, now)
        for fail in now:
            fail()

    def _fail_all(self, rows: RingBatch, error: ServiceError, later: Later) -> None:
        """End all sessions of the batch with `error`."""
        versions = rows.head["slot_version"][np.flatnonzero(rows.place == 0)].tolist()
        for entry, version in zip(rows.entries.tolist(), versions, strict=True):
            later.append(partial(rows.source.fail, entry, version, error))
