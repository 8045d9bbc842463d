"""The metric of lost log lines, of this process and those that report to it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from streamcell.service.logs.audit import Audit
from streamcell.service.logs.configure import lines_lost
from streamcell.service.logs.writer import QUEUE_FULL, REASONS, WRITE_FAILED


class LostLines(Collector):
    """Collects `streamcell_log_lines_dropped_total`."""

    def __init__(self) -> None:
        self._elsewhere: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, reason: str, lines: int) -> None:
        """Count `lines` that another process has lost."""
        if reason in REASONS:
            with self._lock:
                self._elsewhere[reason] += lines

    def collect(self) -> Iterable[Metric]:
        """The one family."""
        family = CounterMetricFamily(
            "streamcell_log_lines_dropped", "Log lines that were not written, by reason.", labels=("reason",)
        )
        here = lines_lost()
        with self._lock:
            for reason in REASONS:
                family.add_metric([reason], here[reason] + self._elsewhere[reason])
        return (family,)


class AuditLines(Collector):
    """Collects `streamcell_audit_lines_total` and `streamcell_audit_lines_dropped_total`."""

    def __init__(self, audit: Audit | None) -> None:
        """`audit`: the server's, if it has one."""
        self._audit = audit

    def collect(self) -> Iterable[Metric]:
        """Both families."""
        yield CounterMetricFamily(
            "streamcell_audit_lines",
            "Lines given to the audit log.",
            value=0 if self._audit is None else self._audit.lines,
        )
        family = CounterMetricFamily(
            "streamcell_audit_lines_dropped",
            "Lines of the audit log that were not written, by reason.",
            labels=("reason",),
        )
        lost = Counter[str]() if self._audit is None else self._audit.lost()
        for reason in (QUEUE_FULL, WRITE_FAILED):
            family.add_metric([reason], lost[reason])
        yield family
