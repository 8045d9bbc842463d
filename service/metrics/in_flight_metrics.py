"""The figures of what clients have in memory, for this process and for those that report to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class MemoryFigures(Collector):
    """Collects `streamcell_in_flight_bytes` and `streamcell_connections_held_back`."""

    def __init__(self) -> None:
        # This process's: bytes, connections held back.
        self.here: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._elsewhere: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def tell(self, process: str, bytes_: int, held_back: int) -> None:
        """Another process has so many bytes of clients in memory and holds back so many connections."""
        with self._lock:
            self._elsewhere[process] = (bytes_, held_back)

    def forget(self, process: str) -> None:
        """That process has gone."""
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
            "Connections that are not read, for they have too much in memory.",
            value=float(sum(each for _, each in figures)),
        )
