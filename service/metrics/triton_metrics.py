"""The same figures under Triton's metric names, for dashboards made for Triton."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .plain_counter import PlainCounterFamily
from .server_metrics import ServerMetrics

_LABELS = ("model", "version")


class TritonMetrics(Collector):
    """Collects `nv_inference_*` of every model; register it beside `ServerMetrics`."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """All families; durations are whole microseconds."""
        read = [
            (dict(zip(_LABELS, m.labels, strict=True)), m, m.request_figures()) for m in self._metrics.models
        ]

        def family(name: str, text: str, values: list[int]) -> Metric:
            made = PlainCounterFamily(f"nv_inference_{name}", text)
            for (labels, _, _), value in zip(read, values, strict=True):
                made.add_sample(made.name, labels, value)
            return made

        figures = [each for _, _, each in read]
        yield family("request_success", "Requests answered.", [each.success.count for each in figures])
        failure = PlainCounterFamily("nv_inference_request_failure", "Requests refused or lost, by reason.")
        for labels, _, each in read:
            for reason, count in each.failed.items():
                failure.add_sample(failure.name, {**labels, "reason": reason}, count)
        yield failure
        yield family(
            "count", "Inferences: a request of n rows counts as n.", [each.inferences for each in figures]
        )
        yield family("exec_count", "Runs of the model.", [each.executions for each in figures])
        for name, text in (
            ("request", "From a request's arrival to its end"),
            ("queue", "From a request's arrival to the batch that took it, and between its batches"),
            ("compute_input", "Gathering a request's batch"),
            ("compute_infer", "The run of a request's batch"),
            ("compute_output", "From the run's end to the request's own reply"),
        ):
            spent = [each.success if name == "request" else getattr(each, name) for each in figures]
            yield family(f"{name}_duration_us", f"{text}, microseconds.", [each.total_us for each in spent])
        pending = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests that wait to run.", labels=_LABELS
        )
        for _, model, _ in read:
            pending.add_metric(model.labels, model.pending)
        yield pending
