"""Begins to export metrics, if the settings ask for it; imports OpenTelemetry only then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from streamcell.service.settings import Settings

if TYPE_CHECKING:
    from .export import MetricExport


def metric_export(settings: Settings, families: Callable[[], Iterable[Metric]]) -> MetricExport | None:
    """The exporter of `families`, not started; None if the settings name no collector."""
    if settings.otlp_endpoint is None:
        return None
    from .export import MetricExport

    return MetricExport(settings.otlp_endpoint, families, settings.otlp_metrics_s)
