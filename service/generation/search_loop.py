"""The part of `loop.py` that advances beam searches."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from streamcell.service.batching.batch import Batch
from streamcell.service.batching.batcher import Batcher
from streamcell.service.errors import BadGeneration
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import RunTally

from .reply import StopReason
from .sampling import Chooser
from .search_work import Search


def searches_of(batch: Batch) -> list[Search]:
    """The searches among the batch's groups."""
    return [group for group in batch.groups if isinstance(group, Search)]


class SearchLoop:
    """The searches in one model's batches. For the thread that runs the engine."""

    def __init__(self, chooser: Chooser, batcher: Batcher, metrics: ModelMetrics) -> None:
        self._chooser = chooser
        self._batcher = batcher
        self._metrics = metrics

    def prepare(self, batch: Batch) -> None:
        """Before the run: take stopped searches out of `batch`, and extend those that begin from the last output."""
        out: list[Search] = []
        for search in searches_of(batch):
            waits_for_output = not search.active[0].step.payloads[0]
            if search.stopped:
                search.reason = StopReason.REQUEST
            elif waits_for_output and search.session.last_output:
                self._grow(search, search.session.last_output)
            elif not waits_for_output:
                continue
            out.append(search)
        if not out:
            return
        batch.groups = [group for group in batch.groups if group not in out]
        batch.rows = [row for row in batch.rows if row.work.group not in out]
        self._batcher.complete(Batch([], 0, uniform=False, groups=out), applied=False)
        self._answer(out, None)
        for search in out:
            if not (search.reason or search.session.last_output):
                search.session.listener.fail(BadGeneration.nothing())

    def advance(self, batch: Batch) -> None:
        """After the run and before the batch is complete, once each beam's `last_output` is set: grow."""
        for search in searches_of(batch):
            search.ran()
            search.session.last_used_s = time.monotonic()
            self._grow(search, b"".join([beam.last_output for beam in search.active]))

    def _grow(self, search: Search, outputs: bytes) -> None:
        y = np.frombuffer(outputs, self._chooser.dtype).reshape(-1, self._chooser.size)
        parents = search.search.grow(y)
        if search.search.done:
            best = search.search.best()
            if best:
                search.reason = StopReason.CLASS if best[0].stopped else StopReason.STEPS
            else:
                search.reason = StopReason.NON_FINITE
            return
        classes = np.array([each.last for each in search.search.live])
        search.grew(parents, [row.tobytes() for row in self._chooser.encode(classes)])

    def answer(self, batch: Batch, run: RunTally) -> None:
        """Once the batch is complete: reply for the searches that are done, and note them in `run`."""
        self._answer(searches_of(batch), run)

    def _answer(self, searches: Iterable[Search], run: RunTally | None) -> None:
        for search in searches:
            if run is not None and not search.reason:
                search.spent = run.spent(search.spent)
            if search.reason and not search.session.ended:
                if run is None:
                    self._metrics.answered(0, time.perf_counter() - search.arrived_s, search.spent)
                else:
                    run.inferences += 1
                    run.answered(search.arrived_s, search.spent)
                self._metrics.generation_ended(search.reason)
                search.listener.generated(search.reply(search.session.step_index), last=True)
