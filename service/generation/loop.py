"""Generation between two runs: the engine thread makes first inputs before a run and next inputs after it."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from streamcell.card import Generation, Signature
from streamcell.service.batching.batch import Batch, Row
from streamcell.service.batching.batcher import Batcher
from streamcell.service.errors import BadGeneration
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import RunTally
from streamcell.service.sessions.session import Output

from .reply import StopReason
from .sampling import Array, Chooser, Feedback
from .search_loop import SearchLoop
from .work import Generating


class GenerationLoop:
    """The generating rows of one model's batches: a `batching` `Feedback`. For the thread that runs the engine."""

    def __init__(
        self,
        signature: Signature,
        generation: Generation,
        batcher: Batcher,
        metrics: ModelMetrics,
        *,
        allow_non_finite: bool,
    ) -> None:
        self._batcher = batcher
        self._metrics = metrics
        self._allow_non_finite = allow_non_finite
        self._chooser = Chooser(signature, generation)
        self._searches = SearchLoop(self._chooser, batcher, metrics)
        self._sizes = [tensor.step_bytes for tensor in signature.outputs]

    def prepare(self, batch: Batch) -> None:
        """Before the run: take stopped generations out of `batch`, and make the first inputs that are due."""
        if batch.groups:
            self._searches.prepare(batch)
        kept: list[Row] = []
        starting: list[Row] = []
        for row in batch.rows:
            work = row.work
            if isinstance(work, Generating):
                if work.stopped and work.stops:
                    self._finish(row, work, work.stops_as)
                    continue
                if not work.payloads and not row.session.last_output:
                    # The work before it was a search, or was stopped before its first step.
                    self._batcher.complete(Batch([row], 0, uniform=False, generates=True), applied=False)
                    row.session.listener.fail(BadGeneration.nothing())
                    continue
                if not work.payloads:
                    starting.append(row)
            kept.append(row)
        for row in self._start(starting):
            kept.remove(row)
        batch.rows = kept

    def _start(self, rows: list[Row]) -> list[Row]:
        """Make each row's first input from its session's last output; returns the rows that end with that."""
        ended = []
        for row, work, chosen, payload, reason in self._choose(rows, 0):
            work.begin(chosen, payload)
            if reason:
                self._finish(row, work, reason)
                ended.append(row)
        return ended

    def _finish(self, row: Row, work: Generating, reason: StopReason) -> None:
        """End `work` before its next step."""
        session = row.session
        work.reason = reason
        session.last_used_s = time.monotonic()
        session.settle()
        self._batcher.complete(Batch([row], 0, uniform=False, generates=True), applied=False)
        if not session.ended:
            self._metrics.generation_ended(reason)
            if not work.replied:
                self._metrics.answered(0, time.perf_counter() - work.arrived_s, work.spent)
            work.listener.generated(work.reply(session.step_index), last=True)

    def advance(self, batch: Batch, outputs: list[bytes], strides: list[int]) -> None:
        """After the run, before the batch is complete: keep each session's last output, and choose the next inputs."""
        at = self._chooser.output
        data, stride, size = outputs[at], strides[at], self._sizes[at]
        for index, row in enumerate(batch.rows):
            end = index * stride + row.steps * size
            row.session.last_output = data[end - size : end]
        if not batch.generates:
            return
        if batch.groups:
            self._searches.advance(batch)
        now_s = time.monotonic()
        self._metrics.generated_steps += sum(row.work.generates for row in batch.rows)
        places = {id(row): index for index, row in enumerate(batch.rows) if isinstance(row.work, Generating)}
        rows = [row for row in batch.rows if id(row) in places]
        for row, work, chosen, payload, reason in self._choose(rows, 1):
            session = row.session
            session.last_used_s = now_s
            work.took(self._step_of(outputs, strides, places[id(row)], work), chosen)
            work.reason = reason or (StopReason.STEPS if work.applied == work.wanted else work.reason)
            if work.reason or session.ended:
                continue
            work.payloads = (payload,)
            row.again = work
            session.gates = gate = session.gates + 1
            # In this order, for whoever stops it opens the latest gate after that.
            if work.stopped and work.stops:
                continue
            if not work.listener.has_room(partial(self._batcher.release, session, gate)):
                row.gate = gate

    def answer(self, batch: Batch, run: RunTally) -> None:
        """Once the batch is complete: send the replies that are due, and note in `run` whose first it is."""
        for row in batch.rows:
            if isinstance(row.work, Generating) and not row.session.ended:
                self._answer(row, row.work, batch, run)
        if batch.groups:
            self._searches.answer(batch, run)

    def _answer(self, row: Row, work: Generating, batch: Batch, run: RunTally) -> None:
        if work.applied == 1:
            run.waits_s.append(batch.taken_s - work.arrived_s)
        first = not work.replied
        if not work.due:
            if first:
                work.spent = run.spent(work.spent)
            return
        if first:
            run.inferences += 1
            run.answered(work.arrived_s, work.spent)
        if work.reason:
            self._metrics.generation_ended(work.reason)
        work.listener.generated(work.reply(row.session.step_index), last=work.reason is not None)

    def _step_of(self, outputs: list[bytes], strides: list[int], place: int, work: Generating) -> list[bytes]:
        if work.output is Output.NONE:
            return []
        return [
            data[place * stride : place * stride + size]
            for data, stride, size in zip(outputs, strides, self._sizes, strict=True)
        ]

    def _choose(
        self, rows: list[Row], ahead: int
    ) -> list[tuple[Row, Generating, bytes, bytes, StopReason | None]]:
        """Choose from each row's last output: the value to report, the next input, and the stop reason if it ends.

        `ahead`: how many of the steps that led to these outputs the sessions' step indices do not count yet.
        """
        if not rows:
            return []
        works = [row.work for row in rows if isinstance(row.work, Generating)]
        recipes = [work.recipe for work in works]
        y = np.frombuffer(b"".join([row.session.last_output for row in rows]), self._chooser.dtype)
        counters = np.array([row.session.step_index + ahead for row in rows])
        chosen, fine = self._chooser.choose(y.reshape(len(rows), -1), recipes, counters)
        fed = self._chooser.encode(chosen)
        told: Array = chosen.astype("<u4") if self._chooser.head == "categorical" else fed
        results = []
        for place, (row, work) in enumerate(zip(rows, works, strict=True)):
            reason: StopReason | None = None
            again = work.repeats(work.applied + ahead)
            if again is not None and again[0]:
                results.append((row, work, again[0], self._chooser.payload(again[0]), again[1]))
                continue
            if not fine[place] and not (self._allow_non_finite and work.recipe.feedback is Feedback.VALUE):
                reason = StopReason.NON_FINITE
            elif again is not None:
                reason = again[1]
            elif work.stop and int(chosen[place]) in work.stop:
                reason = StopReason.CLASS
            results.append((row, work, told[place].tobytes(), fed[place].tobytes(), reason))
        return results
