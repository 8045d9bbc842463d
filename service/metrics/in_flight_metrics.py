"""Metrics of clients' bytes in memory, of this process and those that report to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class MemoryFigures(Collector):
    """Collects `streamcell_in_flight_bytes` and `streamcell_connections_held_back`."""

    def __init__(self) -> None:
        # This process's bytes, and its connections that are held back.
        self.here: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._elsewhere: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def report(self, process: str, bytes_: int, held_back: int) -> None:
        """Note another process's bytes of clients in memory and its number of held-back connections."""
        with self._lock:
            self._elsewhere[process] = (bytes_, held_back)

    def forget(self, process: str) -> None:
        """Drop the figures of a process that has ended."""
        with self._lock:
            self._elsewhere.pop(process, None)

    def collect(self) -> Iterable[Metric]:
        """Both families."""
        with self._lock:
            elsewhere = [*self._elsewhere.values()]
        figures = [self.here(), *elsewhere]
        yield GaugeMetricFamily(
            "streamcell_in_flight_bytes",
            "Bytes of clients in memory: messages half received or unanswered, replies unread.",
            value=float(sum(each for each, _ in figures)),
        )
        yield GaugeMetricFamily(
            "streamcell_connections_held_back",
            "Connections that are not read because they have too much in memory.",
            value=float(sum(each for _, each in figures)),
        )
