"""One model version's figures: the hot path adds to plain numbers, `server_metrics.py` makes families of them
when scraped."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamcell.service.errors import ServiceError

from .histogram import LATENCY_BUCKETS_S, ROW_BUCKETS, Histogram
from .request_metrics import CANCELED, FAILURES, RequestFigures, RequestMetrics, Spent, failure_reason


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
        # "rows": one session a run; "steps": one timestep a run.
        self.restricted: frozenset[str] = frozenset()
        self.pools: tuple[Pool, ...] = ()
        # Read when scraped: live sessions by state, and messages that wait to be run.
        self.sessions: Callable[[], dict[str, int]] = dict
        self.queued: Callable[[], int] = lambda: 0
        self._lock = threading.Lock()

    def ran(self, rows: int, computed_steps: int, compute_s: float) -> None:
        """The engine ran `rows` sessions; `computed_steps` timesteps were computed, padding included."""
        self.computed_steps += computed_steps
        self.batch_rows.observe_one(rows)
        self.compute_s.observe_one(compute_s)

    def delivered(
        self, steps: int, chunks: int, waits_s: Sequence[float], latencies_s: Sequence[float]
    ) -> None:
        """A batch's replies are on their way: `chunks` sessions' chunks with `steps` timesteps in all."""
        self.steps += steps
        self.chunks += chunks
        self.queue_wait_s.observe(waits_s)
        self.step_latency_s.observe(latencies_s)

    def generation_ended(self, reason: str) -> None:
        """A generation ended for `reason`, a metrics label; from the engine's thread."""
        self.generations_ended[reason] += 1

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
