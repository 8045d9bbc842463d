"""Runs what came through rings: from records to the staging buffers and back, with no line of Python a step."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import structlog

from streamcell.service.engine.engine import Engine
from streamcell.service.engine.staging import Staged, steps_of
from streamcell.service.errors import RefusedByModel, RunTimeout, ServiceError, run_failure
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.processes.ring import Records
from streamcell.service.processes.ring_records import HEADER, STEP
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.slots import INITIAL_ROW
from streamcell.service.sessions.values import check_values

from .ring_batch import RingBatch

_log = structlog.get_logger(__name__)


class RingRunner:
    """Runs a model's batches of records. For the runner's thread."""

    def __init__(self, engine: Engine, metrics: ModelMetrics, *, allow_non_finite: bool) -> None:
        self._engine = engine
        self._metrics = metrics
        self._allow_non_finite = allow_non_finite
        self._input_bytes = [tensor.step_bytes for tensor in engine.signature.inputs]
        self._output_bytes = [tensor.step_bytes for tensor in engine.signature.outputs]
        self._stateful = bool(engine.signature.states)

    def run(self, batch: RingBatch) -> None:
        """Run a batch and answer it. What may not run is refused alone."""
        refused: list[tuple[int, int, ServiceError]] = []
        try:
            staged = self._stage(batch)
            bad = self._engine.bad_rows(staged, len(batch.seats), allow_non_finite=self._allow_non_finite)
            if bad:
                batch = self._refuse(batch, bad, refused)
                self._engine.clear_inputs()
                staged = self._stage(batch) if len(batch.seats) else staged
            times_s = self._run(batch, staged) if len(batch.seats) else None
        except Exception as error:  # ONNX Runtime's errors share no base class
            if self._engine.commits_last and not isinstance(error, RunTimeout):
                self._run_alone(batch, refused)
            else:
                self._fail(batch, error, refused)
        else:
            if times_s is not None:
                self._land(batch, staged, times_s)
        for seat, generation, refusal in refused:
            batch.desk.fail(seat, generation, refusal)

    def _run(self, batch: RingBatch, staged: Staged) -> tuple[float, float]:
        """Run the model; when that began and ended."""
        began_s = time.perf_counter()
        self._engine.run(staged)
        ended_s = time.perf_counter()
        self._metrics.ran(len(batch.seats), staged.rows * staged.steps, ended_s - began_s)
        return began_s, ended_s

    def _stage(self, batch: RingBatch) -> Staged:
        used = len(batch.seats)
        staged = self._engine.stage(used, batch.steps)
        at = batch.row * staged.steps + batch.place
        whole = len(at) == used * staged.steps
        for view, size, (begin, end) in zip(
            staged.inputs, self._input_bytes, batch.desk.inputs.places, strict=True
        ):
            target = steps_of(view, size)
            if whole:
                target[: len(at)] = batch.records[:, begin:end]
            else:
                target[: used * staged.steps] = 0  # another session's input of an earlier run
                target[at] = batch.records[:, begin:end]
        staged.lengths[:used] = batch.counts
        if self._stateful:
            slots = batch.seats + self._engine.pool.first_slot
            staged.write[:used, 0] = slots
            staged.read[:used] = np.where(batch.desk.fresh[batch.seats], INITIAL_ROW, slots)
        self._engine.pad(staged, used)
        return staged

    def _land(self, batch: RingBatch, staged: Staged, times_s: tuple[float, float]) -> None:
        """The states have advanced: note it, and send the outputs that were asked for."""
        began_s, ended_s = times_s
        desk, head = batch.desk, batch.head
        first, last = head["first"].astype(bool), head["last"].astype(bool)
        index = desk.applied[batch.seats][batch.row] + batch.place + 1
        desk.applied[batch.seats] += batch.counts
        desk.fresh[batch.seats] = False
        np.subtract.at(desk.queued, head["seat"], head["last"])
        # A row's last timestep says how far the session is, though its message may go on.
        told = last | (head["mode"] == Output.ALL.value) | (batch.place + 1 == batch.counts[batch.row])
        desk.answer(self._replies(batch, staged, index, told))
        now_s = time.perf_counter()
        stamps = head["stamp"]
        requests = int(np.count_nonzero(first | (batch.place == 0)))
        self._metrics.delivered(
            len(head),
            len(batch.seats),
            (batch.taken_s - stamps[first]).tolist(),
            (now_s - stamps[last]).tolist(),
        )
        self._metrics.requests.computed(
            requests,
            int(np.count_nonzero(last)),
            began_s - batch.taken_s,
            ended_s - began_s,
            time.perf_counter() - ended_s,
        )

    def _replies(self, batch: RingBatch, staged: Staged, index: np.ndarray, wanted: np.ndarray) -> Records:
        """A record for each timestep that `wanted`, bool[n], names."""
        layout = batch.desk.outputs
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

    def _refuse(
        self, batch: RingBatch, bad: list[int], refused: list[tuple[int, int, ServiceError]]
    ) -> RingBatch:
        """The batch without the messages that hold bad values and what follows them; those before stay."""
        keep = np.ones(len(batch.row), np.bool_)
        for row in bad:
            places = np.flatnonzero(batch.row == row)
            begins = [
                *np.flatnonzero(batch.head["first"][places] | (batch.place[places] == 0)).tolist(),
                len(places),
            ]
            for begin, end in pairwise(begins):
                if (error := self._bad(batch, places[begin:end])) is not None:
                    keep[places[begin:]] = False
                    seat = int(batch.seats[row])
                    refused.append((seat, int(batch.head["generation"][places[0]]), error))
                    break
        return batch.keep(keep)

    def _bad(self, batch: RingBatch, places: np.ndarray) -> ServiceError | None:
        """What is wrong with a message, or with the part of one that follows what ran of it before."""
        payloads = tuple(
            batch.records[places, begin:end].tobytes() for begin, end in batch.desk.inputs.places
        )
        work = Work(payloads, len(places), Output.NONE, 0, 0.0)
        return check_values(
            self._engine.signature,
            work,
            self._allow_non_finite,
            steps_before=int(batch.head["index"][places[0]]),
        )

    def _firsts(self, batch: RingBatch, error: ServiceError) -> list[tuple[int, int, ServiceError]]:
        """`error` for every session of the batch."""
        rows = np.flatnonzero(batch.place == 0)
        generations = batch.head["generation"][rows].tolist()
        return [(int(seat), number, error) for seat, number in zip(batch.seats, generations, strict=True)]

    def _run_alone(self, batch: RingBatch, refused: list[tuple[int, int, ServiceError]]) -> None:
        """The run failed and left every state as it was: run each row alone, to refuse only what fails again."""
        self._engine.clear_inputs()  # what the model refuses must not stay behind in padding
        for row in range(len(batch.seats)):
            alone = batch.keep(batch.row == row)
            try:
                staged = self._stage(alone)
                times_s = self._run(alone, staged)
            except Exception as error:
                self._engine.clear_inputs()
                refused += self._firsts(alone, RefusedByModel.because(error))
            else:
                self._land(alone, staged, times_s)

    def _fail(self, batch: RingBatch, cause: Exception, refused: list[tuple[int, int, ServiceError]]) -> None:
        """The run failed, or was ended for taking too long; each session of the batch ends with it."""
        _log.error("engine run failed", rows=len(batch.seats), steps=batch.steps, exc_info=cause)
        error = run_failure(cause)
        messages = int(np.count_nonzero(batch.head["first"].astype(bool) | (batch.place == 0)))
        # The first of each session is counted by its front end.
        self._metrics.request_failed(error, messages - len(batch.seats))
        refused += self._firsts(batch, error)
