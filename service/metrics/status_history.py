"""The status page's data: one reading of the metrics, and a ring of the changes between readings in the last hour.

Everything comes from the families that Prometheus would get, so it is the same with one process and with several, and
costs the hot path nothing.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from prometheus_client.core import Metric

# One look each; 180 of them are an hour.
LOOK_S = 20.0
HOUR_S = 3600.0
_LOOKS = int(HOUR_S / LOOK_S)

# Name and version.
ModelKey: TypeAlias = tuple[str, str]
# A counter of `COUNTED` and its labels' values.
CountKey: TypeAlias = tuple[str, tuple[str, ...]]
# By labels' values; 0 for others.
Sums: TypeAlias = defaultdict[tuple[str, ...], float]

# The counters whose increases are kept, with the labels by which they are told apart. The server bounds all of these.
COUNTED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ended": ("streamcell_sessions_ended_total", ("reason",)),
    "opened": ("streamcell_sessions_opened_total", ()),
    "errors": ("streamcell_errors_total", ("code", "reason")),
    "resumes": ("streamcell_resumes_total", ("source", "result")),
    "replies_dropped": ("streamcell_kept_replies_dropped_total", ()),
    "load_failures": ("streamcell_model_load_failures_total", ("model",)),
    "restarts": ("streamcell_process_restarts_total", ("kind",)),
    "spill_returns": ("streamcell_spill_returns_total", ("model",)),
    "chunks": ("streamcell_chunks_total", ("model",)),
    "stalls": ("streamcell_stalls_total", ("thread",)),
    "audit_lines_lost": ("streamcell_audit_lines_dropped_total", ("reason",)),
    "store_errors": ("streamcell_store_errors_total", ("kind",)),
    "fenced": ("streamcell_fenced_total", ()),
    "websockets_refused": ("streamcell_websockets_refused_total", ("reason",)),
    "lines_lost": ("streamcell_log_lines_dropped_total", ("reason",)),
}
_OTHERS = frozenset(
    (
        "streamcell_step_latency_seconds_bucket",
        "streamcell_batch_rows_sum",
        "streamcell_batch_rows_count",
        "streamcell_steps_total",
        "streamcell_sessions",
        "streamcell_tenant_sessions",
        "streamcell_slots",
        "streamcell_slots_used",
        "streamcell_model_info",
        "streamcell_recovery_seconds",
        "streamcell_ready",
        "streamcell_stalled_threads",
        "streamcell_processes",
        "streamcell_lane_info",
        "streamcell_store_lag_seconds",
        "streamcell_lease_age_seconds",
        "streamcell_lease_seconds",
        "streamcell_build_info",
    )
)
_READ = _OTHERS | {name for name, _ in COUNTED.values()}


class Reading:
    """The figures at one time, in seconds of `time.monotonic`."""

    def __init__(self, families: Iterable[Metric], at_s: float) -> None:
        self.at_s = at_s
        self._samples: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for family in families:
            for sample in family.samples:
                if sample.name in _READ:
                    self._samples[sample.name].append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """The sum over the samples whose labels include `labels`; 0 if there is none."""
        return sum(value for has, value in self._samples.get(name, ()) if labels.items() <= has.items())

    def by(self, name: str, *labels: str, **only: str) -> Sums:
        """The sums by the values of `labels`, of the samples whose labels include `only`."""
        sums: Sums = defaultdict(float)
        for has, value in self._samples.get(name, ()):
            if only.items() <= has.items():
                sums[tuple(has.get(label, "") for label in labels)] += value
        return sums

    def info(self, name: str, **labels: str) -> Mapping[str, str]:
        """The labels of the info metric `name`; empty if there is none."""
        for has, _ in self._samples.get(name, ()):
            if labels.items() <= has.items():
                return has
        return {}

    def models(self) -> list[ModelKey]:
        """Every model and version that is served, or still has sessions, by name and number."""
        found = {(has["model"], has["version"]) for has, _ in self._samples.get("streamcell_steps_total", ())}
        return sorted(found, key=lambda key: (key[0], len(key[1]), key[1]))

    def counts(self) -> dict[CountKey, float]:
        """What `COUNTED` names."""
        return {
            (key, values): value
            for key, (name, labels) in COUNTED.items()
            for values, value in self.by(name, *labels).items()
        }

    def buckets(self, model: ModelKey) -> list[tuple[float, float]]:
        """The model's histogram of latencies: upper bounds in seconds, and how many were at or below each."""
        only = dict(zip(("model", "version"), model, strict=True))
        sums = self.by("streamcell_step_latency_seconds_bucket", "le", **only)
        return sorted((float(le), count) for (le,), count in sums.items())

    def runs(self, model: ModelKey) -> tuple[float, float, float]:
        """The model's runs, rows in them and timesteps so far."""
        only = dict(zip(("model", "version"), model, strict=True))
        return (
            self.total("streamcell_batch_rows_count", **only),
            self.total("streamcell_batch_rows_sum", **only),
            self.total("streamcell_steps_total", **only),
        )


@dataclass(frozen=True, slots=True)
class Point:
    """A model between two looks; None: nothing ran.

    Attributes:
        p50_s, p99_s: of a message's latency, in seconds.
        rows: the mean number of sessions in a run.
        steps_s: timesteps a second.
    """

    p50_s: float | None = None
    p99_s: float | None = None
    rows: float | None = None
    steps_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """What changed until `at_s`: a point for each model, and the counters that rose."""

    at_s: float
    points: Mapping[ModelKey, Point] = field(default_factory=dict)
    rose: Mapping[CountKey, float] = field(default_factory=dict)


class LastHour:
    """The looks of the last hour, oldest first."""

    def __init__(self, looks: Sequence[Look], now_s: float) -> None:
        self.now_s = now_s
        self.looks = [look for look in looks if look.at_s > now_s - HOUR_S]

    def rose(self, counter: str, within_s: float = HOUR_S) -> Sums:
        """By how much a counter of `COUNTED` rose, by its labels' values."""
        sums: Sums = defaultdict(float)
        for look in self.looks:
            if look.at_s > self.now_s - within_s:
                for (key, values), more in look.rose.items():
                    if key == counter:
                        sums[values] += more
        return sums

    def points(self, model: ModelKey, within_s: float = HOUR_S) -> list[tuple[float, Point]]:
        """Seconds before now, and the model's point, oldest first."""
        return [
            (self.now_s - look.at_s, look.points[model])
            for look in self.looks
            if model in look.points and look.at_s > self.now_s - within_s
        ]


class History:
    """A ring of looks. Its size depends on the number of served models and of reasons, never on clients."""

    def __init__(self) -> None:
        self._ring: deque[Look] = deque(maxlen=_LOOKS)
        self._latest: Reading | None = None
        self._lock = threading.Lock()

    def add(self, reading: Reading) -> None:
        """Keep what changed since the reading before."""
        with self._lock:
            self._ring.append(_change(self._latest, reading))
            self._latest = reading

    def until(self, reading: Reading) -> LastHour:
        """The last hour, with what changed since the latest kept reading."""
        with self._lock:
            return LastHour([*self._ring, _change(self._latest, reading)], reading.at_s)


def _change(before: Reading | None, now: Reading) -> Look:
    known = set() if before is None else set(before.models())
    points = {}
    for model in now.models():
        then = before if model in known else None
        runs, rows, steps = (
            _rise(a, b) for a, b in zip(then.runs(model) if then else (0, 0, 0), now.runs(model), strict=True)
        )
        counts = dict(then.buckets(model)) if then else {}
        rises = [(le, _rise(counts.get(le, 0.0), count)) for le, count in now.buckets(model)]
        took_s = now.at_s - before.at_s if before is not None else 0.0
        points[model] = Point(
            quantile(rises, 0.5),
            quantile(rises, 0.99),
            rows / runs if runs else None,
            steps / took_s if took_s > 0 else 0.0,
        )
    counted = {} if before is None else before.counts()
    rose = {key: _rise(counted.get(key, 0.0), value) for key, value in now.counts().items()}
    return Look(now.at_s, points, {key: value for key, value in rose.items() if value})


def _rise(before: float, now: float) -> float:
    """By how much a counter rose; one that fell has begun anew."""
    return now - before if now >= before else now


def quantile(buckets: Sequence[tuple[float, float]], q: float) -> float | None:
    """The `q`-quantile of a histogram (upper bound, values at or below it), linear within a bucket; None: no values.

    As Prometheus's `histogram_quantile`: beyond the last finite bound it is that bound.
    """
    count = buckets[-1][1] if buckets else 0.0
    if not count:
        return None
    below_s, below = 0.0, 0.0
    for bound_s, at in buckets:
        if at >= q * count:
            if bound_s == float("inf"):
                return below_s
            return below_s + (bound_s - below_s) * (q * count - below) / ((at - below) or 1.0)
        below_s, below = bound_s, at
    return below_s
