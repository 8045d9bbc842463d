"""A histogram whose observations cost the hot path an append; they are counted a thousand at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

# Seconds, from 50 µs to 1 s; the last bucket tells slow from stuck.
LATENCY_BUCKETS_S = (
    50e-6, 75e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 750e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3,
    7.5e-3, 10e-3, 15e-3, 20e-3, 30e-3, 50e-3, 75e-3, 100e-3, 150e-3, 200e-3, 300e-3, 500e-3, 750e-3, 1.0, 5.0,
)  # fmt: skip
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

# Seconds that clients notice, up to the longest that a server waits for its engine process by default.
PAUSE_BUCKETS_S = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0)

_FOLD = 1024  # values that are kept before they are counted


class Histogram:
    """Cumulative-bucket histogram in Prometheus's sense: bucket `le` counts values ≤ le.

    Values are kept as they come and counted a thousand at a time, or when somebody looks. Any thread may call `observe`
    and `observe_one`.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._array = np.asarray(bounds, np.float64)
        self._counts = np.zeros(len(self._bounds) + 1, np.int64)
        self._sum = 0.0
        self._kept: list[float] = []
        # By bucket the latest value that belongs to a traced message: value, when, trace and span.
        self._exemplars: dict[int, tuple[float, float, str, str]] = {}
        self._lock = threading.Lock()

    def observe_one(self, value: float) -> None:
        """Count `value`."""
        kept = self._kept
        kept.append(value)
        if len(kept) >= _FOLD:
            self._fold()

    def observe(self, values: Sequence[float]) -> None:
        """Count each of `values`."""
        kept = self._kept
        kept.extend(values)
        if len(kept) >= _FOLD:
            self._fold()

    def exemplify(self, value: float, trace_id: str, span_id: str) -> None:
        """Note the trace and the span, in hexadecimal, of a value that is counted elsewhere."""
        at = int(np.searchsorted(self._array, value))
        with self._lock:
            self._exemplars[at] = (value, time.time(), trace_id, span_id)

    def exemplars(self) -> dict[int, tuple[float, float, str, str]]:
        """By bucket, counted from 0, its latest exemplar: value, seconds since 1970, trace and span."""
        with self._lock:
            return dict(self._exemplars)

    def _fold(self) -> None:
        with self._lock:
            # Others may append meanwhile: what is taken is removed from the same list, never replaced by another.
            values = self._kept[:]
            del self._kept[: len(values)]
            array = np.asarray(values, np.float64)
            self._counts += np.bincount(np.searchsorted(self._array, array), minlength=len(self._counts))
            self._sum += float(array.sum())

    def totals(self) -> tuple[int, float]:
        """How many values were observed, and their sum."""
        self._fold()
        with self._lock:
            return int(self._counts.sum()), self._sum

    def snapshot(self) -> tuple[list[tuple[str, int]], float]:
        """([(upper bound, values at or below it), …, ("+Inf", all)], sum of all values)."""
        self._fold()
        with self._lock:
            cumulative, total = np.cumsum(self._counts).tolist(), self._sum
        bounds = [repr(float(bound)) for bound in self._bounds]
        return list(zip([*bounds, "+Inf"], cumulative, strict=True)), total
