"""Metrics of a server's processes: how many run, how often one was restarted, and Prometheus's usual ones added up."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .children import Supervised

_CPU = "process_cpu_seconds"
# Figures that cannot be added up: the supervisor's are reported.
_OWN = ("process_start_time_seconds", "process_max_fds")


class OneProcess(Collector):
    """Collects the metrics of a server of one process."""

    def collect(self) -> Iterable[Metric]:
        """Every family."""
        return _counts({"engine": (1, 0), "frontend": (0, 0)})


class ProcessFigures(Collector):
    """Collects the metrics of this process and its children."""

    def __init__(self, engine: Supervised, frontends: Sequence[Supervised]) -> None:
        self._engine = engine
        self._frontends = frontends

    def collect(self) -> Iterable[Metric]:
        """Every family."""
        kept = (self._engine, *self._frontends)
        pids = [os.getpid(), *(child.process.pid for each in kept if (child := each.child) is not None)]
        families = [{family.name: family for family in _of(pid)} for pid in pids]
        for name, family in families[0].items():
            if name not in _OWN:
                value = sum(
                    sample.value for each in families if name in each for sample in each[name].samples
                )
                if name == _CPU:
                    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
                    value += ended.ru_utime + ended.ru_stime
                family.samples = [family.samples[0]._replace(value=value)]
            yield family
        yield from _counts(
            {
                kind: (sum(each.child is not None for each in some), sum(each.restarts for each in some))
                for kind, some in (("engine", (self._engine,)), ("frontend", self._frontends))
            }
        )


def _counts(counts: dict[str, tuple[int, int]]) -> Iterable[Metric]:
    """The families with (running processes, restarts) of each kind."""
    running = GaugeMetricFamily(
        "streamcell_processes", "Processes of the server that are running.", labels=("kind",)
    )
    restarts = CounterMetricFamily(
        "streamcell_process_restarts", "Processes that died and were restarted.", labels=("kind",)
    )
    for kind, (alive, lost) in counts.items():
        running.add_metric([kind], alive)
        restarts.add_metric([kind], lost)
    return running, restarts


def _of(pid: int) -> Iterable[Metric]:
    """One process's families; empty for a process that has just ended."""
    return ProcessCollector(pid=lambda: pid, registry=CollectorRegistry()).collect()
