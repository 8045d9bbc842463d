"""The server's metrics for Prometheus: families are built when scraped, from the counts of `model_metrics.py`."""

from __future__ import annotations

import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.metadata import version

import onnxruntime as ort
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from streamcell.service.build_info import COMPILED
from streamcell.service.errors import ServiceError
from streamcell.service.logs.audit import Audit

from .histogram import Histogram
from .model_metrics import ModelMetrics
from .readiness import Readiness

_MODEL = ("model", "version")
_MOST_TENANTS = 100


class ServerMetrics(Collector):
    """Collects the metrics of all models and of the server itself; register it with the server's registry."""

    def __init__(self) -> None:
        self.models: list[ModelMetrics] = []
        self.readiness = Readiness()
        self._stalled: frozenset[tuple[str, str]] = frozenset()
        self._stalls: Counter[str] = Counter({"serving": 0, "engine": 0, "frontend": 0})
        self.lane = ""
        self.audit: Audit | None = None
        # How many live sessions each tenant has.
        self.tenants: Callable[[], dict[str, int]] = dict
        # Kept replies: their bytes, and how many were dropped because of a bound.
        self.kept_replies: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._errors: Counter[tuple[str, str]] = Counter()
        self._load_failures: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """True if the server takes new sessions and every thread makes progress."""
        return self.readiness()

    def add(self, metrics: ModelMetrics) -> None:
        """Report `metrics` from now on, once."""
        with self._lock:
            if metrics not in self.models:
                self.models = [*self.models, metrics]

    def remove(self, metrics: ModelMetrics) -> None:
        """Stop reporting `metrics`."""
        with self._lock:
            self.models = [each for each in self.models if each is not metrics]

    def stall(self, kind: str, name: str, stalled: bool) -> None:
        """Note that a thread makes no progress, or makes progress again.

        `kind`: "serving", "engine", or "frontend" for a front end's serving thread; `name`: which of that kind.
        """
        thread = {(kind, name)}
        with self._lock:
            self._stalls[kind] += stalled and not thread <= self._stalled
            self._stalled = self._stalled | thread if stalled else self._stalled - thread
        (self.readiness.hold if stalled else self.readiness.release)(f"{kind} {name} stalled")

    def stalled(self, kind: str) -> list[str]:
        """Names of the threads of a kind that make no progress."""
        return sorted(name for each, name in self._stalled if each == kind)

    def load_failed(self, model: str) -> None:
        """Count a version of `model` that could not be loaded while serving."""
        with self._lock:
            self._load_failures[model] += 1

    def streams_paused(self, model: str, version: str, pause_s: float, count: int) -> None:
        """Count `count` streams on a model that front ends kept open and that continued after `pause_s`."""
        for each in self.models:
            if each.labels == [model, version]:
                each.stream_pause_s.observe([pause_s] * count)

    def error(self, error: ServiceError, times: int = 1) -> None:
        """Count `times` calls or sessions that ended with `error`."""
        with self._lock:
            self._errors[error.code.name, error.reason] += times
        if self.audit is not None:
            self.audit.refused(
                error.code.name,
                error.reason,
                peer=error.peer,
                tenant=error.tenant,
                by=error.subject,
                model=error.facts.get("model"),
                session=error.facts.get("session_id"),
                times=times,
            )

    def collect(self) -> Iterable[Metric]:
        """All families."""
        yield from self._histograms()
        yield from self._counters()
        yield from self._gauges()

    def _histograms(self) -> Iterable[Metric]:
        for name, text in (
            ("step_latency", "From a message's arrival to the sending of its (first) reply, in seconds."),
            ("queue_wait", "From a message's arrival to the batch that took it, in seconds."),
            ("compute", "One run of the model, in seconds."),
            ("spill_return", "What a run waited for spilled sessions to come back, in seconds."),
            (
                "stream_pause",
                "How long streams waited that front ends kept open while the engine process was restarted, in seconds.",
            ),
        ):
            family = HistogramMetricFamily(f"streamcell_{name}_seconds", text, labels=_MODEL)
            for model in self.models:
                histogram = getattr(model, f"{name}_s")
                buckets, total = histogram.snapshot()
                family.add_metric(model.labels, buckets=_exemplified(histogram, buckets), sum_value=total)
            yield family
        family = HistogramMetricFamily("streamcell_batch_rows", "Rows (sessions) in one run.", labels=_MODEL)
        for model in self.models:
            buckets, total = model.batch_rows.snapshot()
            family.add_metric(model.labels, buckets=buckets, sum_value=total)
        yield family

    def _counters(self) -> Iterable[Metric]:
        for name, text in (
            ("steps", "Timesteps applied to sessions."),
            ("generated_steps", "Timesteps whose input the server generated; `steps` counts them too."),
            ("chunks", "Chunks run; a chunk is a session's part of one run."),
            (
                "computed_steps",
                "Timesteps computed, padding included; divided by `steps` it is the cost of padding.",
            ),
            ("spills", "Sessions whose state left the device for the host's memory."),
            ("spill_returns", "Sessions whose state came back to the device, because they stepped."),
        ):
            counter = CounterMetricFamily(f"streamcell_{name}", text, labels=_MODEL)
            for model in self.models:
                counter.add_metric(model.labels, getattr(model, name))
            yield counter
        opened = CounterMetricFamily("streamcell_sessions_opened", "Sessions opened.", labels=_MODEL)
        ended = CounterMetricFamily(
            "streamcell_sessions_ended", "Sessions ended, by reason.", labels=(*_MODEL, "reason")
        )
        cancelled = CounterMetricFamily(
            "streamcell_cancelled_chunks",
            "Queued messages dropped because their session had ended.",
            labels=_MODEL,
        )
        for model in self.models:
            opened.add_metric(model.labels, model.opened)
            cancelled.add_metric(model.labels, model.cancelled)
            for reason, count in sorted(model.ended.items()):
                ended.add_metric([*model.labels, reason], count)
        yield from self._resumes()
        generations = CounterMetricFamily(
            "streamcell_generations_ended", "Generations ended, by reason.", labels=(*_MODEL, "reason")
        )
        for model in self.models:
            for reason, count in sorted(model.generations_ended.items()):
                generations.add_metric([*model.labels, reason], count)
        errors = CounterMetricFamily(
            "streamcell_errors", "Errors sent to clients.", labels=("code", "reason")
        )
        failures = CounterMetricFamily(
            "streamcell_model_load_failures",
            "Models that could not be loaded while serving.",
            labels=("model",),
        )
        with self._lock:
            for (code, reason), count in sorted(self._errors.items()):
                errors.add_metric([code, reason], count)
            # 0 for each served model, so that the first failure is an increase.
            names = {model.labels[0] for model in self.models} | self._load_failures.keys()
            for name in sorted(names):
                failures.add_metric([name], self._load_failures[name])
            stalls = CounterMetricFamily(
                "streamcell_stalls", "How often a busy thread stalled.", labels=("thread",)
            )
            for kind, count in self._stalls.items():
                stalls.add_metric([kind], count)
        yield from (opened, ended, cancelled, generations, errors, failures, stalls)

    def _resumes(self) -> Iterable[Metric]:
        resumes = CounterMetricFamily(
            "streamcell_resumes", "Openings that resume a session.", labels=(*_MODEL, "source", "result")
        )
        resent = CounterMetricFamily(
            "streamcell_replies_resent", "Replies sent again to resumed sessions.", labels=_MODEL
        )
        copies = CounterMetricFamily(
            "streamcell_state_copies",
            "Sessions whose state was copied: snapshot, fork, restore or rewind.",
            labels=(*_MODEL, "kind"),
        )
        for model in self.models:
            for (source, result), count in sorted(model.resumes.items()):
                resumes.add_metric([*model.labels, source, result], count)
            resent.add_metric(model.labels, model.replies_resent)
            for kind, count in sorted(model.state_copies.items()):
                copies.add_metric([*model.labels, kind], count)
        kept_bytes, dropped = self.kept_replies()
        yield from (resumes, resent, copies)
        yield CounterMetricFamily(
            "streamcell_kept_replies_dropped",
            "Kept replies dropped because of a bound on their bytes.",
            value=dropped,
        )
        yield GaugeMetricFamily(
            "streamcell_kept_reply_bytes",
            "Bytes of the replies kept in memory for resumable sessions.",
            value=kept_bytes,
        )

    def _by_tenant(self) -> Metric:
        family = GaugeMetricFamily(
            "streamcell_tenant_sessions", "Live sessions of a tenant.", labels=("tenant",)
        )
        for tenant, count in _bounded(self.tenants()).items():
            family.add_metric([tenant], count)
        return family

    def _gauges(self) -> Iterable[Metric]:
        sessions = GaugeMetricFamily("streamcell_sessions", "Live sessions.", labels=(*_MODEL, "state"))
        slots = GaugeMetricFamily("streamcell_slots", "State slots in the pool.", labels=_MODEL)
        used = GaugeMetricFamily("streamcell_slots_used", "State slots taken.", labels=_MODEL)
        held = GaugeMetricFamily(
            "streamcell_state_bytes", "Bytes of state of the sessions that hold a slot.", labels=_MODEL
        )
        spilled = GaugeMetricFamily(
            "streamcell_spilled_sessions", "Sessions whose state is in the host's memory.", labels=_MODEL
        )
        load = GaugeMetricFamily("streamcell_model_load_seconds", "Time to load the model.", labels=_MODEL)
        recovery = GaugeMetricFamily(
            "streamcell_recovery_seconds",
            "Time to bring back the sessions that an earlier process had left.",
            labels=_MODEL,
        )
        restricted = GaugeMetricFamily(
            "streamcell_model_restricted",
            "1 if the model runs one session (rows) or one timestep (steps) at a time, as its proof demands.",
            labels=(*_MODEL, "kind"),
        )
        about = InfoMetricFamily(
            "streamcell_model",
            "The model's kind, what it multiplies in, what its proof compared, and what restricts it.",
            labels=_MODEL,
        )
        for model in self.models:
            about.add_metric(model.labels, model.about)
            for kind in ("rows", "steps"):
                restricted.add_metric([*model.labels, kind], float(kind in model.restricted))
            for state, count in model.sessions().items():
                sessions.add_metric([*model.labels, state], count)
            taken = [(pool, pool.used()) for pool in model.pools]
            slots.add_metric(model.labels, sum(pool.slots for pool, _ in taken))
            used.add_metric(model.labels, sum(count for _, count in taken))
            held.add_metric(model.labels, sum(count * pool.slot_bytes for pool, count in taken))
            spilled.add_metric(model.labels, sum(pool.spilled() for pool, _ in taken))
            load.add_metric(model.labels, model.load_s)
            recovery.add_metric(model.labels, model.recovery_s)
        yield from (sessions, slots, used, held, spilled, load, recovery, restricted, about)
        yield self._by_tenant()
        yield GaugeMetricFamily(
            "streamcell_ready",
            "1 while the server takes new sessions and every thread makes progress.",
            value=float(self.readiness()),
        )
        yield GaugeMetricFamily(
            "streamcell_stalled_threads",
            "Threads that make no progress though they have work.",
            value=float(len(self._stalled)),
        )
        yield InfoMetricFamily(
            "streamcell_lane", "The gRPC transport: fast or threaded.", value={"lane": self.lane}
        )
        yield InfoMetricFamily(
            "streamcell_build",
            "Whether the hot path is compiled, and the versions of the server and its libraries.",
            value={
                "compiled": str(COMPILED).lower(),
                "version": version("streamcell"),
                "python": platform.python_version(),
                "onnxruntime": ort.__version__,
                "grpcio": version("grpcio"),
            },
        )


def _bounded(counts: dict[str, int]) -> dict[str, int]:
    """The tenants with the most sessions; all others are summed up under a name that no tenant has."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    others = sum(count for _, count in ordered[_MOST_TENANTS:])
    return dict(ordered[:_MOST_TENANTS]) | ({"(others)": others} if others else {})


def _exemplified(
    histogram: Histogram, buckets: list[tuple[str, int]]
) -> list[tuple[str, int] | tuple[str, int, Exemplar]]:
    """The buckets with their exemplars, which only a page in OpenMetrics shows."""
    known = histogram.exemplars()
    found: list[tuple[str, int] | tuple[str, int, Exemplar]] = []
    for at, (bound, count) in enumerate(buckets):
        if at in known:
            value, at_s, trace_id, span_id = known[at]
            found.append((bound, count, Exemplar({"trace_id": trace_id, "span_id": span_id}, value, at_s)))
        else:
            found.append((bound, count))
    return found
