"""Prometheus's families on their way from the process that has them to the one that is scraped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .plain_counter import PlainCounterFamily

_PLAIN = "plain counter"


def pack_families(registry: CollectorRegistry) -> bytes:
    """Every family of `registry`."""
    return json.dumps(
        [
            [family.name, family.documentation, _PLAIN if isinstance(family, PlainCounterFamily) else family.type,
             [[sample.name, sample.labels, sample.value] for sample in family.samples]]
            for family in registry.collect()
        ]
    ).encode()  # fmt: skip


class Families(Collector):
    """Collects what `pack_families` made in another process."""

    def __init__(self, ask: Callable[[], bytes | None]) -> None:
        """`ask` gets it; None where there is no such process just now, which is not ready then."""
        self._ask = ask

    def collect(self) -> Iterable[Metric]:
        """Every family."""
        packed = self._ask()
        if packed is None:
            yield GaugeMetricFamily("streamcell_ready", "1 while new sessions are taken.", value=0.0)
            return
        for name, text, kind, samples in json.loads(packed):
            family = PlainCounterFamily(name, text) if kind == _PLAIN else Metric(name, text, kind)
            for sample in samples:
                family.add_sample(*sample)
            yield family
