"""Beam searches in the engine's loop. See `loop.py`, of which this is the part for searches."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from streamcell.service.batching.batch import Batch
from streamcell.service.batching.batcher import Batcher
from streamcell.service.errors import BadGeneration
from streamcell.service.metrics.model_metrics import ModelMetrics

from .sampling import Chooser
from .search_work import BeamStep, Search
from .work import CLASS, NON_FINITE, REQUEST, STEPS


class SearchLoop:
    """The searches in one model's batches. For the runner's thread."""

    def __init__(self, chooser: Chooser, batcher: Batcher, metrics: ModelMetrics) -> None:
        self._chooser = chooser
        self._batcher = batcher
        self._metrics = metrics

    def prepare(self, batch: Batch) -> None:
        """Before the run: take out of `batch` what was asked to stop, and what the last output alone lets grow."""
        out: list[Search] = []
        for search in batch.searches:
            if search.stopped:
                search.reason = REQUEST
                out.append(search)
            elif not search.active[0].step.payloads[0] and not search.session.last_output:
                out.append(search)
            elif not search.active[0].step.payloads[0]:
                self._grow(search, search.session.last_output)
                out.append(search)
        if not out:
            return
        batch.searches = [search for search in batch.searches if search not in out]
        batch.rows = [
            row
            for row in batch.rows
            if not (isinstance(work := row.parts[0][0], BeamStep) and work.search in out)
        ]
        self._batcher.landed(Batch([], 0, uniform=False, searches=out), applied=False)
        self._answer(out, [])
        for search in out:
            if not (search.reason or search.session.last_output):
                search.session.owner.fail(BadGeneration.nothing())

    def advance(self, batch: Batch) -> None:
        """After the run and before `landed`, with each beam's `last_output` in place."""
        for search in batch.searches:
            search.ran()
            search.session.last_used_s = time.monotonic()
            self._grow(search, b"".join([beam.last_output for beam in search.active]))

    def _grow(self, search: Search, outputs: bytes) -> None:
        y = np.frombuffer(outputs, self._chooser.dtype).reshape(-1, self._chooser.size)
        parents = search.search.grow(y)
        if search.search.done:
            best = search.search.best()
            search.reason = (CLASS if best[0].stopped else STEPS) if best else NON_FINITE
            return
        classes = np.array([each.last for each in search.search.live])
        search.grew(parents, [row.tobytes() for row in self._chooser.encode(classes)])

    def answer(self, batch: Batch, latencies: list[float]) -> int:
        """After `landed`: reply for the searches that are done; how many."""
        return self._answer(batch.searches, latencies)

    def _answer(self, searches: Any, latencies: list[float]) -> int:
        done = 0
        for search in searches:
            if search.reason and not search.session.ended:
                done += 1
                latencies.append(time.perf_counter() - search.arrived_s)
                self._metrics.generation_ended(search.reason)
                search.listener.generated(search.reply(search.session.step_index), last=True)
        return done
