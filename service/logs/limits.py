"""Limits the rate of each kind of log line: a burst, then one line every few seconds with the number left out.

A client can cause some lines as often as it likes, such as a failed run's traceback. They must not fill a disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# Our events' names are constants in the code; this bounds the names that other libraries log.
_MOST_KINDS = 1_000


@dataclass(slots=True)
class _Bucket:
    """A token bucket, and the number of refusals since it last gave tokens."""

    tokens: float
    filled_s: float
    refused: int = 0


class Limits:
    """A token bucket for each kind of line."""

    def __init__(self, burst: int, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Each kind may take `burst` tokens at once, and gets a new one every `every_s` seconds."""
        self._burst = burst
        self._every_s = every_s
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        # Reentrant: a finalizer may log while its thread is in `take`.
        self._lock = threading.RLock()

    def take(self, kind: str, tokens: float = 1.0) -> int | None:
        """Take tokens. Returns the number of refusals of this kind since the last success, or None if refused."""
        with self._lock:
            now_s = self._clock()
            bucket = self._buckets.get(kind)
            if bucket is None:
                if len(self._buckets) >= _MOST_KINDS:
                    kind = ""
                bucket = self._buckets.setdefault(kind, _Bucket(self._burst, now_s))
            bucket.tokens = min(self._burst, bucket.tokens + (now_s - bucket.filled_s) / self._every_s)
            bucket.filled_s = now_s
            if bucket.tokens < tokens:
                bucket.refused += 1
                return None
            bucket.tokens -= tokens
            refused, bucket.refused = bucket.refused, 0
            return refused
