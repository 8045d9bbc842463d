"""What the store's threads count, for the metrics."""

from __future__ import annotations

import threading
import time
from collections import Counter

import structlog

from streamcell.service.metrics.histogram import LATENCY_BUCKETS_S, Histogram

from .errors import KINDS, StoreFailure

_log = structlog.get_logger(__name__)

_LOG_S = 5.0  # between two log lines of one kind of failure
_LOG_CHARS = 500  # of what the store says


class Figures:
    """Counts of one store.

    Attributes:
        write_s: of each call that writes sessions, the store's replica included.
        fenced: sessions that turned out to be another replica's.
        leases_lost: how often this replica's lease has run out.
    """

    def __init__(self) -> None:
        self.write_s = Histogram(LATENCY_BUCKETS_S)
        self.fenced = 0
        self.leases_lost = 0
        self._errors: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self._logged_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def failed(self, failure: StoreFailure, doing: str) -> None:
        """Count a failed call, and log it unless its like was logged a moment ago."""
        with self._lock:
            self._errors[failure.kind] += 1
            now_s = time.monotonic()
            quiet = now_s - self._logged_s.get(failure.kind, -_LOG_S) < _LOG_S
            if not quiet:
                self._logged_s[failure.kind] = now_s
        if not quiet:
            _log.error("the store failed", doing=doing, kind=failure.kind, error=str(failure)[:_LOG_CHARS])

    def errors(self) -> dict[str, int]:
        """How many calls of the store have failed, by kind."""
        with self._lock:
            return dict(self._errors)
