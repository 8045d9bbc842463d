"""A histogram that takes all observations of a batch at once, in a few microseconds per batch instead of per value."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

# Seconds, from 50 µs to 1 s; the last bucket tells slow from stuck.
LATENCY_BUCKETS_S = (
    50e-6, 75e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 750e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3,
    7.5e-3, 10e-3, 15e-3, 20e-3, 30e-3, 50e-3, 75e-3, 100e-3, 150e-3, 200e-3, 300e-3, 500e-3, 750e-3, 1.0, 5.0,
)  # fmt: skip
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

_FEW = 12  # below this number of values, bisecting each is cheaper than numpy's fixed cost


class Histogram:
    """Cumulative-bucket histogram in Prometheus's sense: bucket `le` counts values ≤ le."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._array = np.asarray(bounds, np.float64)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe_one(self, value: float) -> None:
        """Count `value`."""
        place = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[place] += 1
            self._sum += value

    def observe(self, values: Sequence[float]) -> None:
        """Count each of `values`."""
        if not values:
            return
        if len(values) < _FEW:
            with self._lock:
                for value in values:
                    self._counts[bisect_left(self._bounds, value)] += 1
                self._sum += sum(values)
            return
        array = np.asarray(values, np.float64)
        found = np.bincount(np.searchsorted(self._array, array), minlength=len(self._counts)).tolist()
        with self._lock:
            self._counts = [have + more for have, more in zip(self._counts, found, strict=True)]
            self._sum += float(array.sum())

    def totals(self) -> tuple[int, float]:
        """How many values were observed, and their sum."""
        with self._lock:
            return sum(self._counts), self._sum

    def snapshot(self) -> tuple[list[tuple[str, int]], float]:
        """([(upper bound, values at or below it), …, ("+Inf", all)], sum of all values)."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        cumulative = np.cumsum(counts).tolist()
        bounds = [repr(float(bound)) for bound in self._bounds]
        return list(zip([*bounds, "+Inf"], cumulative, strict=True)), total
