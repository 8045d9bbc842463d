"""What the server reports to Prometheus. Hot paths add to plain numbers; families are built when scraped."""

from __future__ import annotations

import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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

from streamcell.proto import pb

from .errors import ServiceError
from .histogram import LATENCY_BUCKETS_S, ROW_BUCKETS, Histogram
from .request_metrics import CANCELED, FAILURES, RequestFigures, RequestMetrics, Spent, failure_reason

_MODEL = ("model", "version")


@dataclass(frozen=True)
class Pool:
    """What is read of a loaded model when it is scraped.

    Attributes:
        slots: that its state pool has; 0 for a stateless model.
        slot_bytes: that one takes.
        used: how many are taken.
        rows_waiting: rows of unary calls that wait to be run.
    """

    slots: int
    slot_bytes: int
    used: Callable[[], int]
    rows_waiting: Callable[[], int]


class ModelMetrics:
    """One model version's figures. `ran` and `delivered` are called once a batch, from the engine's thread.

    They go on where a version is loaded anew: while old sessions are left, both pools count.
    """

    def __init__(self, model: str, version: str) -> None:
        self.labels = [model, version]
        self.step_latency_s = Histogram(LATENCY_BUCKETS_S)
        self.queue_wait_s = Histogram(LATENCY_BUCKETS_S)
        self.compute_s = Histogram(LATENCY_BUCKETS_S)
        self.batch_rows = Histogram(ROW_BUCKETS)
        self.requests = RequestMetrics()
        self.steps = self.chunks = self.computed_steps = self.cancelled = self.opened = 0
        self.generated_steps = 0
        self.ended: Counter[str] = Counter()
        self.generations_ended: Counter[str] = Counter()
        self.load_s = 0.0
        self.pools: tuple[Pool, ...] = ()
        # Read when scraped: live sessions by state, and messages that wait to be run.
        self.sessions: Callable[[], dict[str, int]] = dict
        self.queued: Callable[[], int] = lambda: 0
        self._lock = threading.Lock()

    def ran(self, rows: int, computed_steps: int, compute_s: float) -> None:
        """The engine ran `rows` sessions; `computed_steps` timesteps were computed, padding included."""
        self.computed_steps += computed_steps
        self.batch_rows.observe((rows,))
        self.compute_s.observe((compute_s,))

    def delivered(
        self, steps: int, chunks: int, waits_s: Sequence[float], latencies_s: Sequence[float]
    ) -> None:
        """A batch's replies are on their way: `chunks` sessions' chunks with `steps` timesteps in all."""
        self.steps += steps
        self.chunks += chunks
        self.queue_wait_s.observe(waits_s)
        self.step_latency_s.observe(latencies_s)

    def generation_ended(self, reason: int) -> None:
        """A generation ended, for one of `pb.StopReason`; from the engine's thread."""
        name = pb.StopReason.Name(reason)
        self.generations_ended[name.removeprefix("STOP_REASON_").lower()] += 1

    def session_opened(self, count: int = 1) -> None:
        """`count` sessions were opened."""
        with self._lock:
            self.opened += count

    def session_ended(self, reason: str, count: int = 1) -> None:
        """`count` sessions ended, for `reason` in lower case: "closed", "cancelled", "session_expired", …."""
        if count:
            with self._lock:
                self.ended[reason] += count

    def work_cancelled(self, chunks: int) -> None:
        """`chunks` queued messages were dropped unrun since their session had ended."""
        with self._lock:
            self.cancelled += chunks

    def attach(self, pool: Pool) -> None:
        """Count `pool` from now on."""
        with self._lock:
            self.pools = (*self.pools, pool)

    def detach(self, pool: Pool) -> None:
        """Count `pool` no more."""
        with self._lock:
            self.pools = tuple(each for each in self.pools if each is not pool)

    @property
    def pending(self) -> int:
        """Requests that wait to be run."""
        return self.queued() + sum(pool.rows_waiting() for pool in self.pools)

    def request_failed(self, error: ServiceError, requests: int = 1, total_s: float = 0.0) -> None:
        """`requests` requests were refused with `error`, `total_s` after their arrivals in all.

        For errors that end a session and answer no request, such as SESSION_EXPIRED, nothing is counted.
        """
        reason = failure_reason(error)
        if reason is not None and requests:
            self.requests.fail(reason, requests, total_s)

    def request_figures(self) -> RequestFigures:
        """This model's requests as Triton counts them."""
        requests = self.requests
        # Read first, so that no part of a success is newer than the whole.
        count, latency_s = self.step_latency_s.totals()
        failed = {reason: requests.failed[reason] for reason in FAILURES}
        failed[CANCELED] += self.cancelled
        return RequestFigures(
            success=Spent(count, latency_s),
            failed=failed,
            fail_s=requests.fail_s,
            queue=Spent(*self.queue_wait_s.totals()),
            compute_input=Spent(count, requests.input_s),
            compute_infer=Spent(count, requests.infer_s),
            compute_output=Spent(count, requests.output_s),
            inferences=requests.inferences,
            executions=self.compute_s.totals()[0],
            last_ms=requests.last_ms,
        )


class ServerMetrics(Collector):
    """Collects every model's figures and the server's own; register it with the server's registry."""

    def __init__(self) -> None:
        self.models: list[ModelMetrics] = []
        self.ready = False
        self.lane = ""
        self._errors: Counter[tuple[str, str]] = Counter()
        self._load_failures: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, metrics: ModelMetrics) -> None:
        """Report `metrics` too, once."""
        with self._lock:
            if metrics not in self.models:
                self.models = [*self.models, metrics]

    def remove(self, metrics: ModelMetrics) -> None:
        """Report `metrics` no more."""
        with self._lock:
            self.models = [each for each in self.models if each is not metrics]

    def load_failed(self, model: str) -> None:
        """A version of `model` could not be loaded while serving."""
        with self._lock:
            self._load_failures[model] += 1

    def error(self, error: ServiceError) -> None:
        """A call or a session ended with `error`."""
        with self._lock:
            self._errors[error.code.name, error.reason] += 1

    def collect(self) -> Iterable[Metric]:
        """Every family, as prometheus_client asks for them."""
        yield from self._histograms()
        yield from self._counters()
        yield from self._gauges()

    def _histograms(self) -> Iterable[Metric]:
        for name, text in (
            ("step_latency", "From a message's arrival to its (first) reply on the way, seconds a message."),
            ("queue_wait", "From a message's arrival to the batch that took it, seconds a message."),
            ("compute", "One run of the model, seconds."),
        ):
            family = HistogramMetricFamily(f"streamcell_{name}_seconds", text, labels=_MODEL)
            for model in self.models:
                buckets, total = getattr(model, f"{name}_s").snapshot()
                family.add_metric(model.labels, buckets=buckets, sum_value=total)
            yield family
        family = HistogramMetricFamily(
            "streamcell_batch_rows", "Sessions that ran together, rows a run.", labels=_MODEL
        )
        for model in self.models:
            buckets, total = model.batch_rows.snapshot()
            family.add_metric(model.labels, buckets=buckets, sum_value=total)
        yield family

    def _counters(self) -> Iterable[Metric]:
        for name, text in (
            ("steps", "Timesteps applied to sessions."),
            ("generated_steps", "Timesteps that sessions were fed by the server itself, in `steps` as well."),
            ("chunks", "Chunks run: a session's part of one run."),
            (
                "computed_steps",
                "Timesteps computed, padding included; over steps, this is what padding costs.",
            ),
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
            "Messages dropped unrun since their session had ended.",
            labels=_MODEL,
        )
        for model in self.models:
            opened.add_metric(model.labels, model.opened)
            cancelled.add_metric(model.labels, model.cancelled)
            for reason, count in sorted(model.ended.items()):
                ended.add_metric([*model.labels, reason], count)
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
            for name, count in sorted(self._load_failures.items()):
                failures.add_metric([name], count)
        yield from (opened, ended, cancelled, generations, errors, failures)

    def _gauges(self) -> Iterable[Metric]:
        sessions = GaugeMetricFamily("streamcell_sessions", "Live sessions.", labels=(*_MODEL, "state"))
        slots = GaugeMetricFamily("streamcell_slots", "State slots in the pool.", labels=_MODEL)
        used = GaugeMetricFamily("streamcell_slots_used", "State slots taken.", labels=_MODEL)
        held = GaugeMetricFamily(
            "streamcell_state_bytes", "State of the sessions that hold a slot.", labels=_MODEL
        )
        load = GaugeMetricFamily("streamcell_model_load_seconds", "Time to load the model.", labels=_MODEL)
        for model in self.models:
            for state, count in model.sessions().items():
                sessions.add_metric([*model.labels, state], count)
            taken = [(pool, pool.used()) for pool in model.pools]
            slots.add_metric(model.labels, sum(pool.slots for pool, _ in taken))
            used.add_metric(model.labels, sum(count for _, count in taken))
            held.add_metric(model.labels, sum(count * pool.slot_bytes for pool, count in taken))
            load.add_metric(model.labels, model.load_s)
        yield from (sessions, slots, used, held, load)
        yield GaugeMetricFamily(
            "streamcell_ready", "1 while new sessions are taken.", value=float(self.ready)
        )
        yield InfoMetricFamily("streamcell_lane", "How calls are driven.", value={"lane": self.lane})
        yield InfoMetricFamily(
            "streamcell_build",
            "Versions of what runs.",
            value={
                "version": version("streamcell"),
                "python": platform.python_version(),
                "onnxruntime": ort.__version__,
                "grpcio": version("grpcio"),
            },
        )
