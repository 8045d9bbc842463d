"""Relays metric families from the engine process to the process that Prometheus scrapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamcell.service.metrics.page import Slices
from streamcell.service.metrics.plain_counter import PlainCounterFamily

_PLAIN = "plain counter"


def pack_families(registry: CollectorRegistry) -> bytes:
    """All families of `registry` as bytes. Pauses between families let other threads run."""
    packed = []
    slices = Slices()
    for family in registry.collect():
        kind = _PLAIN if isinstance(family, PlainCounterFamily) else family.type
        samples = [[sample.name, sample.labels, sample.value] for sample in family.samples]
        packed.append(json.dumps([family.name, family.documentation, kind, samples]))
        slices.between()
    return f"[{','.join(packed)}]".encode()


class RelayedMetrics(Collector):
    """Collects the families that `pack_families` packed in another process."""

    def __init__(self, ask: Callable[[], bytes | None], own: Collector | None = None) -> None:
        """Collect from another process.

        Args:
            ask: gets the other process's packed families; None if there is no such process now: then the server is
                not ready.
            own: collector of this process's families, whose values are added to those of the same name.
        """
        self._ask = ask
        self._own = own

    def collect(self) -> Iterable[Metric]:
        """All families."""
        packed = self._ask()
        own = {} if self._own is None else {family.name: family for family in self._own.collect()}
        if packed is None:
            yield from own.values()
            yield GaugeMetricFamily("streamcell_ready", "1 while new sessions are taken.", value=0.0)
            return
        for name, text, kind, samples in json.loads(packed):
            family = PlainCounterFamily(name, text) if kind == _PLAIN else Metric(name, text, kind)
            for sample in samples:
                family.add_sample(*sample)
            if name in own:
                _add(family, own[name])
            yield family


def _add(family: Metric, more: Metric) -> None:
    """Add the values of `more` to the samples of `family` that have the same labels."""
    values = {(sample.name, *sample.labels.items()): sample.value for sample in more.samples}
    family.samples = [
        sample._replace(value=sample.value + values.get((sample.name, *sample.labels.items()), 0.0))
        for sample in family.samples
    ]
