"""How a batch of sessions is run: rows in, outputs out, and an answer to each message that is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Protocol

import structlog

from streamcell.service.engine.engine import Engine, Staged
from streamcell.service.errors import EngineFailed, RefusedByModel, RunTimeout, ServiceError, run_failure
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import RunTally
from streamcell.service.sessions.session import Aside, Output, Work
from streamcell.service.sessions.value_check import ValueCheck, check_length
from streamcell.service.transport.segments import SEGMENTS, WORTH

from .batch import Batch
from .batcher import Batcher
from .guarded_run import GuardedRun, Later
from .row_staging import RowStaging

_log = structlog.get_logger(__name__)


class Feedback(Protocol):
    """Makes the inputs of work that `generates`, between two runs. For the thread that runs the engine."""

    def prepare(self, batch: Batch) -> None:
        """Before the run: make first inputs, and take rows that must not run out of `batch`."""

    def advance(self, batch: Batch, outputs: list[bytes], strides: list[int]) -> None:
        """After the run, before the batch is complete: make next inputs.

        Args:
            batch: as it ran; its states have advanced.
            outputs: the outputs of all rows, one tensor after another.
            strides: bytes of a row in each.
        """

    def answer(self, batch: Batch, run: RunTally) -> None:
        """Once the batch is complete: send the replies that are due, and note in `run` whose first it is."""


class BatchRunner:
    """Runs batches of sessions: the `RowKind` of a `Batch`. For the thread that runs the engine."""

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher,
        metrics: ModelMetrics,
        feedback: Feedback | None,
        *,
        allow_non_finite: bool,
    ) -> None:
        """The arguments are the runner's."""
        self._batcher = batcher
        self._metrics = metrics
        self._feedback = feedback
        self._signature = engine.signature
        self._output_bytes = [tensor.step_bytes for tensor in engine.signature.outputs]
        self._cutter = Cutter(self._output_bytes)
        self._check = ValueCheck(engine.signature, allow_non_finite=allow_non_finite)
        self._guarded = GuardedRun(engine, metrics, self._check)
        self.fill = RowStaging(engine).stage

    def run(self, batch: Batch) -> None:
        """Run a batch and answer it."""
        if batch.groups:
            self._do_asides(batch)
        if batch.generates and self._feedback is not None:
            try:
                self._feedback.prepare(batch)
            except Exception as error:  # a bug ends these sessions, not the thread
                _log.error("making a batch's inputs failed", rows=len(batch.rows), exc_info=error)
                self.failed(batch, error)
                return
        self._guarded(self, batch)

    def _do_asides(self, batch: Batch) -> None:
        """Do the work that takes no row, and remove it from the batch. Its sessions have no row in the batch."""
        asides = [group for group in batch.groups if isinstance(group, Aside)]
        if not asides:
            return
        batch.groups = [group for group in batch.groups if not group.aside]
        failed = []
        for aside in asides:
            try:
                aside.do()
            except Exception as error:  # a bug or a device's fault ends this session, not the thread
                _log.error("a session's state was not copied", exc_info=error)
                failed.append(aside)
        self._batcher.complete(Batch([], 0, uniform=False, groups=asides), applied=False)
        for aside in asides:
            if aside in failed:
                aside.session.listener.fail(EngineFailed("the session's state could not be copied"))
            else:
                aside.tell()

    # What `GuardedRun` asks for

    def count(self, rows: Batch) -> int:
        """How many rows there are."""
        return len(rows.rows)

    def apart(self, rows: Batch) -> Iterator[Batch]:
        """The rows one by one, but a group's together."""
        return rows.apart()

    def without(self, rows: Batch, bad: list[int], later: Later) -> Batch:
        """Take the refused messages out of the batch. Earlier messages of the same row stay in it."""
        bad_groups = {id(group) for index in bad if (group := rows.rows[index].work.group) is not None}
        kept = []
        for index, row in enumerate(rows.rows):
            if index in bad:
                for place, part in enumerate(row.parts):
                    if (error := self._wrong(part.work)) is not None:
                        later.append(partial(row.session.listener.fail, error))
                        row.parts = row.parts[:place]
                        row.steps = sum(part.steps for part in row.parts)
                        break
            if row.work.group is not None and id(row.work.group) in bad_groups:
                continue
            if row.parts:
                kept.append(row)
            else:
                refused = Batch([row], 0, uniform=False, generates=rows.generates)
                self._batcher.complete(refused, applied=False)
        if bad_groups:
            gone = [group for group in rows.groups if id(group) in bad_groups]
            rows.groups = [group for group in rows.groups if id(group) not in bad_groups]
            self._batcher.complete(Batch([], 0, uniform=False, groups=gone), applied=False)
        rows.rows = kept
        rows.steps = max((row.steps for row in kept), default=0)
        rows.uniform = False
        return rows

    def _wrong(self, work: Work) -> ServiceError | None:
        return check_length(self._signature, work) or self._check.first_bad(work)

    def refused(self, rows: Batch, cause: Exception, later: Later) -> None:
        """A row that failed alone is refused."""
        self._batcher.complete(rows, applied=False)
        later.append(partial(rows.rows[0].session.listener.fail, RefusedByModel.because(cause)))

    def failed(self, rows: Batch, cause: Exception) -> None:
        """Each session of the batch ends, so no state that the run may have written is read again."""
        if isinstance(cause, RunTimeout):
            self._batcher.inline.policy.stalled()
        self._batcher.complete(rows, applied=False)
        for row in rows.rows:
            error = run_failure(cause)
            self._metrics.request_failed(error, len(row.parts) - 1)  # the listener counts the first
            row.session.listener.fail(error)

    def completed(self, rows: Batch, staged: Staged, run: RunTally) -> None:
        """Advance the sessions, and hand each message's outputs to its session's listener."""
        batch, used = rows, len(rows.rows)
        read_apart = 0
        for row in batch.rows:
            read_apart += row.session.read_apart
        self._batcher.inline.ran(used, run.cpu_s, read_apart)
        strides = [staged.steps * size for size in self._output_bytes]
        outputs = [
            view[: used * stride].tobytes() for view, stride in zip(staged.outputs, strides, strict=True)
        ]
        if self._feedback is not None:
            self._feedback.advance(batch, outputs, strides)
        self._batcher.complete(batch, applied=True)
        if used < WORTH:
            self._answer(batch, outputs, strides, run)
            return
        held = SEGMENTS.hold([row.session.peer for row in batch.rows])
        try:
            self._answer(batch, outputs, strides, run)
        finally:
            SEGMENTS.release(held)

    def _answer(self, batch: Batch, outputs: list[bytes], strides: list[int], run: RunTally) -> None:
        clock = time.perf_counter
        latencies, waits, ended_s = run.latencies_s, run.waits_s, run.ended_s
        answered = 0
        output_s = 0.0
        uniform, taken_s = batch.uniform, batch.taken_s
        sizes = [batch.steps * size for size in self._output_bytes]
        cuts = list(zip(outputs, strides, sizes, strict=True))
        for index, row in enumerate(batch.rows):
            session = row.session
            work = row.work
            if session.ended or work.generates:
                continue
            if uniform and work.output is Output.ALL:
                answered += 1
                if work.counted:
                    arrived_s = work.arrived_s
                    now_s = clock()  # a reply waits for those before it
                    waits.append(taken_s - arrived_s)
                    latencies.append(now_s - arrived_s)
                    output_s += now_s - ended_s
                tensors = [data[index * stride : index * stride + size] for data, stride, size in cuts]
                session.listener.deliver(work, tensors, work.steps, session.step_index)
                continue
            offsets = [index * stride for stride in strides]
            step_index = session.step_index - row.steps
            for work, start, count in row.parts:
                if start == 0 and work.counted:
                    waits.append(taken_s - work.arrived_s)
                step_index += count
                answer = self._cutter.cut(work, start, count, outputs, offsets)
                if answer is not None:
                    answered += 1
                    if work.counted:
                        run.answered(work.arrived_s, work.spent)
                    session.listener.deliver(work, answer, work.steps_given, step_index)
                elif work.counted:
                    work.spent = run.spent(work.spent)
                offsets = [
                    offset + count * size for offset, size in zip(offsets, self._output_bytes, strict=True)
                ]
        if batch.generates and self._feedback is not None:
            self._feedback.answer(batch, run)
        run.inferences += answered
        run.output_s += output_s
        used = run.chunks = len(batch.rows)
        run.steps = used * batch.steps if uniform else sum([row.steps for row in batch.rows])


class Cutter:
    """Cuts messages' outputs out of a batch's."""

    def __init__(self, sizes: list[int]) -> None:
        """`sizes`: the bytes of a timestep of each output."""
        self._sizes = sizes

    def steps(self, outputs: list[bytes], offsets: list[int], steps: int) -> list[bytes]:
        """Cut `steps` timesteps out of each output, from its offset on."""
        return [
            data[offset : offset + steps * size]
            for data, offset, size in zip(outputs, offsets, self._sizes, strict=True)
        ]

    def cut(
        self, work: Work, start: int, count: int, outputs: list[bytes], offsets: list[int]
    ) -> list[bytes] | None:
        """The outputs of a message whose last part has run; None if it has parts to come.

        `start` and `count` say which of its timesteps ran, and begin at `offsets` in the outputs.
        """
        last = start + count == work.steps
        if work.output is Output.NONE:
            return [] if last else None
        if work.output is Output.LAST:
            if not last:
                return None
            ends = [offset + (count - 1) * size for offset, size in zip(offsets, self._sizes, strict=True)]
            return self.steps(outputs, ends, 1)
        tensors = self.steps(outputs, offsets, count)
        if last and work.pieces is None:
            return tensors
        if work.pieces is None:
            work.pieces = [[] for _ in tensors]
        for pieces, tensor in zip(work.pieces, tensors, strict=True):
            pieces.append(tensor)
        return [b"".join(pieces) for pieces in work.pieces] if last else None
