"""Sends spans and metrics to an OpenTelemetry collector: OTLP over HTTP, with protobuf."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Sample

from .tracing import Tracing

_log = structlog.get_logger(__name__)

_STOP_S = 2.0
_TIMEOUT_S = 10.0
_SCOPE = InstrumentationScope("streamcell")


def resource() -> Resource:
    """The description of this process for the collector."""
    return Resource.create(
        {
            "service.name": "streamcell",
            "service.version": version("streamcell"),
            "service.instance.id": str(uuid.uuid4()),
        }
    )


class SpanExport:
    """Sends spans to a collector; no thread of the server waits for its answers."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        """`endpoint`: the collector's URL, without /v1/traces; `ratio`: see `Tracing`."""
        # What is sampled is decided by `Tracing`.
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource(), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracing = Tracing(self._provider.get_tracer("streamcell"), ratio)

    def stop(self) -> None:
        """Send what is left, within two seconds."""
        _within(self._provider.shutdown)


class MetricExport:
    """Sends all metrics every `every_s` seconds, from `start` to `stop`."""

    def __init__(self, endpoint: str, families: Callable[[], Iterable[Family]], every_s: float) -> None:
        """`endpoint`: the collector's URL, without /v1/metrics; `families`: gives the metrics of the moment."""
        self._exporter = OTLPMetricExporter(endpoint=f"{endpoint.rstrip('/')}/v1/metrics", timeout=_TIMEOUT_S)
        self._families = families
        self._every_s = every_s
        self._resource = resource()
        self._began_ns = time.time_ns()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metric-export", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send the last figures, within two seconds."""
        self._stopping.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        failing = False
        while True:
            last = self._stopping.wait(self._every_s)
            try:
                sent = self._exporter.export(self.data()) is MetricExportResult.SUCCESS
            except Exception as error:  # no fault of a collector may end the thread
                _log.debug("metrics not sent", exc_info=error)
                sent = False
            if not sent and not failing:
                _log.warning("metrics not sent", remedy="see whether a collector answers at --otlp-endpoint")
            failing = not sent
            if last:
                self._exporter.shutdown()
                return

    def data(self) -> MetricsData:
        """The metrics of this moment, as the collector gets them."""
        now_ns = time.time_ns()
        metrics = [
            metric for family in self._families() for metric in _metrics(family, self._began_ns, now_ns)
        ]
        scope = ScopeMetrics(_SCOPE, metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])


def _metrics(family: Family, began_ns: int, now_ns: int) -> Iterator[Metric]:
    """A Prometheus family in OpenTelemetry's form; an info becomes a gauge of 1."""

    def points(samples: Iterable[Sample]) -> list[NumberDataPoint]:
        return [NumberDataPoint(each.labels, began_ns, now_ns, float(each.value)) for each in samples]

    name, unit = family.name, _UNITS.get(family.unit or family.name.rpartition("_")[2], "")
    if family.type == "histogram":
        found = list(_histograms(family.samples, began_ns, now_ns))
        yield Metric(name, family.documentation, unit, Histogram(found, AggregationTemporality.CUMULATIVE))
    elif family.type == "counter":
        totals = points(each for each in family.samples if not each.name.endswith("_created"))
        yield Metric(name, family.documentation, unit, Sum(totals, AggregationTemporality.CUMULATIVE, True))
    else:
        yield Metric(name, family.documentation, unit, Gauge(points(family.samples)))


_UNITS = {"seconds": "s", "bytes": "By"}


def _histograms(samples: Sequence[Sample], began_ns: int, now_ns: int) -> Iterator[HistogramDataPoint]:
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    for labels, counts in buckets.items():
        counts.sort()
        cumulative = [0.0, *(count for _, count in counts)]
        yield HistogramDataPoint(
            dict(labels),
            began_ns,
            now_ns,
            int(cumulative[-1]),
            sums.get(labels, 0.0),
            [int(after - before) for before, after in pairwise(cumulative)],
            [bound for bound, _ in counts[:-1]],
            None,  # type: ignore[arg-type]  # neither minimum nor maximum is known: unset on the wire
            None,  # type: ignore[arg-type]
        )


def _within(what: Callable[[], object]) -> None:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    thread.join(_STOP_S)
