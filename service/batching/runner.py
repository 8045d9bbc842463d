"""One model at work: the engine's thread, whose loop is take → step → deliver."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import structlog

from streamcell.card import Generation, Signature
from streamcell.service.engine.engine import Engine, Staged
from streamcell.service.errors import RefusedByModel, RunTimeout, ServiceError, run_failure
from streamcell.service.frames.runner import FrameRunner
from streamcell.service.frames.turns import Turn
from streamcell.service.generation.loop import GenerationLoop
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.processes.engine.ring_batch import RingBatch
from streamcell.service.processes.engine.ring_runner import RingRunner
from streamcell.service.sessions.session import Output, Session, Work
from streamcell.service.sessions.values import check_length, check_values

from .batch import Batch
from .batcher import Batcher, Soon
from .cutting import Cutter
from .inline_policy import Shortness
from .row_staging import Misfit, RowStaging

_log = structlog.get_logger(__name__)


class Runner:
    """Runs one model's batches on a thread of its own, from `start` until `stop`."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        batcher: Batcher,
        metrics: ModelMetrics,
        *,
        ragged: bool,
        allow_non_finite: bool = False,
        generation: Generation | None = None,
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        self._metrics = metrics
        self._allow_non_finite = allow_non_finite
        self._signature: Signature = engine.signature
        self._output_bytes = [tensor.step_bytes for tensor in self._signature.outputs]
        self._cutter = Cutter(self._output_bytes)
        self._rows = RowStaging(engine)
        # What runs on a card may be bound to the thread that captured it.
        self._may_inline = engine.device.on_host
        self._shortness = Shortness()
        self._frames = FrameRunner(engine, batcher, metrics, ragged=ragged)
        self._rings = RingRunner(engine, metrics, allow_non_finite=allow_non_finite)
        self._warm: Future[None] = Future()
        self._generations = None
        if generation is not None:
            self._generations = GenerationLoop(
                self._signature, generation, batcher, metrics, allow_non_finite=allow_non_finite
            )
        self._thread = threading.Thread(target=self._loop, name=f"engine-{name}", daemon=True)

    def start(self) -> None:
        """Warm the engine up on the thread that will run it, and begin to take batches. Returns once it is warm.

        Raises:
            DeviceError and ONNX Runtime's errors: the warm-up failed; the thread has ended.
        """
        self._thread.start()
        try:
            self._warm.result()
        finally:
            self._warm = Future()  # an error in it would hold the engine, and the engine it

    def stop(self) -> None:
        """Finish the batch at hand and end the thread. Call after the sessions have been ended."""
        self._batcher.stop()
        self._thread.join()
        self._may_inline, self._batcher.inline = False, None
        self._engine.close()

    def _loop(self) -> None:
        try:
            self._engine.warm_up()
        except BaseException as error:
            self._engine.close()
            self._warm.set_exception(error)
            return
        self._warm.set_result(None)
        while (batch := self._batcher.take()) is not None:
            if isinstance(batch, Turn):
                self._frames.turn(batch)
            elif isinstance(batch, RingBatch):
                self._rings.run(batch)
            else:
                self._batch(batch)

    def _inline(self, soon: Soon) -> None:
        """Run a batch on the thread that read its messages, while the engine's thread sleeps."""
        batch = self._batcher.take_booked()
        if batch is None:
            self._batcher.unbook()
            return
        try:
            self._batch(batch)
        finally:
            # Generations go on by themselves: that is for the engine's thread.
            self._batcher.unbook(None if batch.generates else soon)

    def _batch(self, batch: Batch) -> None:
        refused: list[tuple[Session, ServiceError]] = []
        try:
            staged = self._step(batch, refused)
        except Exception as error:  # ONNX Runtime's errors share no base class
            if self._engine.commits_last and not isinstance(error, RunTimeout):
                self._run_alone(batch, refused)
            else:
                self._fail(batch, error)
        else:
            self._deliver(batch, staged)
        for session, refusal in refused:
            session.owner.fail(refusal)

    # Step

    def _step(self, batch: Batch, refused: list[tuple[Session, ServiceError]]) -> Staged | None:
        """Fill the staging buffers, refuse what may not run, run the rest; None where nothing was left to run."""
        if batch.generates and self._generations is not None:
            self._generations.prepare(batch)
        while batch.rows:
            known = len(refused)
            try:
                staged = self._rows.stage(batch)
                if bad := self._engine.bad_rows(
                    staged, len(batch.rows), allow_non_finite=self._allow_non_finite
                ):
                    self._refuse(batch, bad, refused)
            except Misfit as misfit:
                self._refuse(batch, misfit.rows, refused)
                assert len(refused) > known  # by the same rule, or this would go on for ever
            if len(refused) == known:
                self._run(batch, staged)
                return staged
            self._engine.clear_inputs()
        return None

    def _run(self, batch: Batch, staged: Staged) -> None:
        batch.began_s = time.perf_counter()
        self._engine.run(staged)
        batch.ended_s = time.perf_counter()
        took_s = batch.ended_s - batch.began_s
        self._metrics.ran(len(batch.rows), staged.rows * staged.steps, took_s)
        self._shortness.ran(len(batch.rows), took_s)
        self._batcher.inline = self._inline if self._may_inline and self._shortness.short else None

    def _refuse(self, batch: Batch, bad: list[int], refused: list[tuple[Session, ServiceError]]) -> None:
        """Take the refused messages out of `batch`; messages of the same row that came before stay in it."""
        kept = []
        for index, row in enumerate(batch.rows):
            if index in bad:
                for place, (work, _, _) in enumerate(row.parts):
                    if (error := self._wrong(work)) is not None:
                        refused.append((row.session, error))
                        row.parts = row.parts[:place]
                        row.steps = sum(count for _, _, count in row.parts)
                        break
            if row.parts:
                kept.append(row)
            else:
                self._batcher.landed(Batch([row], 0, uniform=False), applied=False)
        if gone := batch.keep(kept):
            self._batcher.landed(Batch([], 0, uniform=False, searches=gone), applied=False)

    def _wrong(self, work: Work) -> ServiceError | None:
        return check_length(self._signature, work) or check_values(
            self._signature, work, self._allow_non_finite
        )

    # Deliver

    def _deliver(self, batch: Batch, staged: Staged | None) -> None:
        if staged is None:
            return
        used = len(batch.rows)
        strides = [staged.steps * size for size in self._output_bytes]
        outputs = [
            view[: used * stride].tobytes() for view, stride in zip(staged.outputs, strides, strict=True)
        ]
        if self._generations is not None:
            self._generations.advance(batch, outputs, strides)
        self._batcher.landed(batch, applied=True)
        self._answer(batch, outputs, strides)

    def _answer(self, batch: Batch, outputs: list[bytes], strides: list[int]) -> None:
        used = len(batch.rows)
        now_s = time.perf_counter()
        latencies: list[float] = []
        waits: list[float] = []
        parts = done = 0
        uniform, taken_s = batch.uniform, batch.taken_s
        sizes = [batch.steps * size for size in self._output_bytes]
        cuts = list(zip(outputs, strides, sizes, strict=True))
        for index, row in enumerate(batch.rows):
            session = row.session
            if session.ended:
                continue
            if batch.generates and self._generations is not None and row.parts[0][0].generates:
                first = self._generations.answer(row, batch, waits, latencies)
                parts += first
                done += first
                continue
            if uniform and (work := row.parts[0][0]).output is Output.ALL:
                done += 1
                if work.counted:
                    parts += 1
                    arrived_s = work.arrived_s
                    waits.append(taken_s - arrived_s)
                    latencies.append(now_s - arrived_s)
                tensors = [data[index * stride : index * stride + size] for data, stride, size in cuts]
                session.owner.deliver(work, tensors, work.steps, session.step_index)
                continue
            offsets = [index * stride for stride in strides]
            step_index = session.step_index - row.steps
            for work, start, count in row.parts:
                parts += work.counted
                if start == 0 and work.counted:
                    waits.append(batch.taken_s - work.arrived_s)
                step_index += count
                answer = self._cutter.cut(work, start, count, outputs, offsets)
                if answer is not None:
                    done += 1
                    if work.counted:
                        latencies.append(now_s - work.arrived_s)
                    session.owner.deliver(work, answer, work.steps_given, step_index)
                offsets = [
                    offset + count * size for offset, size in zip(offsets, self._output_bytes, strict=True)
                ]
        if batch.searches and self._generations is not None:
            answered = self._generations.searches.answer(batch, latencies)
            parts += answered
            done += answered
        self._metrics.delivered(sum(row.steps for row in batch.rows), used, waits, latencies)
        self._metrics.requests.computed(
            parts,
            done,
            batch.began_s - batch.taken_s,
            batch.ended_s - batch.began_s,
            time.perf_counter() - batch.ended_s,
        )

    def _run_alone(self, batch: Batch, refused: list[tuple[Session, ServiceError]]) -> None:
        """The run failed and left every state as it was: run each row alone, to refuse only what fails again."""
        self._engine.clear_inputs()
        for alone in batch.apart():
            try:
                staged = self._rows.stage(alone)
                self._run(alone, staged)
            except Exception as error:
                self._engine.clear_inputs()
                self._batcher.landed(alone, applied=False)
                refused.append((alone.rows[0].session, RefusedByModel.because(error)))
            else:
                self._deliver(alone, staged)

    def _fail(self, batch: Batch, cause: Exception) -> None:
        """The run failed or was ended: each session of the batch ends, so what was written is not read again."""
        if isinstance(cause, RunTimeout):
            self._shortness.stalled()
            self._batcher.inline = None
        _log.error("engine run failed", rows=len(batch.rows), steps=batch.steps, exc_info=cause)
        self._batcher.landed(batch, applied=False)
        for row in batch.rows:
            error = run_failure(cause)
            self._metrics.request_failed(error, len(row.parts) - 1)  # the first is counted by its owner
            row.session.owner.fail(error)
