"""The metric of what was measured of the machine at start."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamcell.service.machine import Machine


class MachineFigures(Collector):
    """Collects `streamcell_machine_seconds`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def collect(self) -> Iterable[Metric]:
        """The one family."""
        machine = self._machine
        family = GaugeMetricFamily(
            "streamcell_machine_seconds",
            "What was measured of the machine at start, and the bounds that follow from it.",
            labels=("what",),
        )
        for what, seconds in (
            ("hand_over", machine.hand_over_s),
            ("work", machine.work_s),
            ("inline_batch", machine.batch_s),
            ("inline_row", machine.row_s),
            ("spin", machine.spin_s),
        ):
            family.add_metric([what], seconds)
        return (family,)
