"""The metrics of a shared store of sessions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .histogram import Histogram


class StoreFigures(Protocol):
    """What a store counts; `Store.figures`."""

    write_s: Histogram
    fenced: int

    def errors(self) -> dict[str, int]:
        """How many of its calls have failed, by kind."""


class Measured(Protocol):
    """A store, as far as its metrics need it; `lease_s`: the time of its lease, in seconds."""

    lease_s: float

    @property
    def figures(self) -> StoreFigures:
        """Its counts."""

    def lag_s(self) -> float:
        """Age of the oldest change that is not stored, in seconds."""

    def lease_age_s(self) -> float:
        """Seconds since the lease was renewed; infinite without a lease."""


class StoreMetrics(Collector):
    """Collects them; without a store the families have no samples."""

    def __init__(self, store: Measured | None) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        """All families."""
        write = HistogramMetricFamily(
            "streamcell_store_write_seconds",
            "One call that writes sessions to the store, its replica included, in seconds.",
        )
        errors = CounterMetricFamily(
            "streamcell_store_errors", "Calls of the store that failed, by kind.", labels=("kind",)
        )
        fenced = CounterMetricFamily("streamcell_fenced", "Sessions that turned out to be another replica's.")
        lag = GaugeMetricFamily(
            "streamcell_store_lag_seconds",
            "Age of the oldest change of a session that is not in the store.",
        )
        age = GaugeMetricFamily(
            "streamcell_lease_age_seconds",
            "Seconds since this server's lease of the store was renewed; +Inf without a lease.",
        )
        time = GaugeMetricFamily(
            "streamcell_lease_seconds", "Seconds after which others may take this server's sessions."
        )
        if self._store is not None:
            figures = self._store.figures
            buckets, total = figures.write_s.snapshot()
            write.add_metric([], buckets=buckets, sum_value=total)
            for kind, count in figures.errors().items():
                errors.add_metric([kind], count)
            fenced.add_metric([], figures.fenced)
            lag.add_metric([], self._store.lag_s())
            age.add_metric([], self._store.lease_age_s())
            time.add_metric([], self._store.lease_s)
        return (write, errors, fenced, lag, age, time)
