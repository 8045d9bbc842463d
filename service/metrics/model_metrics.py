"""Counts of one model version. The hot path adds to plain numbers; `server_metrics.py` makes families of them when
scraped."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from streamcell.service.errors import ServiceError

from .histogram import LATENCY_BUCKETS_S, PAUSE_BUCKETS_S, ROW_BUCKETS, Histogram
from .request_metrics import Computed, RequestFigures, RequestMetrics, RunTally, failure_reason


@dataclass(frozen=True)
class Pool:
    """The figures of a loaded model's state pool, read when scraped.

    Attributes:
        slots: slots in the pool; 0 for a stateless model.
        slot_bytes: bytes of one slot.
        used: returns the number of slots taken.
        rows_waiting: returns the number of rows of unary calls that wait to run.
        spilled: returns the number of sessions whose state is in the host's memory.
    """

    slots: int
    slot_bytes: int
    used: Callable[[], int]
    rows_waiting: Callable[[], int]
    spilled: Callable[[], int] = lambda: 0


class ModelMetrics:
    """Counts of one model version. The thread that runs a batch calls `ran` and `delivered` once for each run.

    A reloaded version keeps its counts; while sessions are left on the old engine, both pools count.
    """

    def __init__(self, model: str, version: str) -> None:
        self.labels = [model, version]
        self.step_latency_s = Histogram(LATENCY_BUCKETS_S)
        self.queue_wait_s = Histogram(LATENCY_BUCKETS_S)
        self.compute_s = Histogram(LATENCY_BUCKETS_S)
        self.batch_rows = Histogram(ROW_BUCKETS)
        self.spill_return_s = Histogram(LATENCY_BUCKETS_S)
        self.stream_pause_s = Histogram(PAUSE_BUCKETS_S)  # of streams that front ends keep open
        self.requests = RequestMetrics()
        self.steps = self.chunks = self.computed_steps = self.cancelled = self.opened = 0
        self.generated_steps = 0
        self.spills = self.spill_returns = 0
        self.ended: Counter[str] = Counter()
        self.resumes: Counter[tuple[str, str]] = Counter()  # by source and result
        self.replies_resent = 0
        self.state_copies: Counter[str] = Counter()  # by kind
        self.generations_ended: Counter[str] = Counter()
        self.load_s = 0.0
        self.recovery_s = 0.0  # to bring back the sessions that an earlier process has left
        # "rows": one session a run; "steps": one timestep a run.
        self.restricted: frozenset[str] = frozenset()
        # Of the loaded file, for people: its kind, what it multiplies in, what its proof found.
        self.about: dict[str, str] = {}
        # Called after each run that was delivered, if runs are traced: the run, its rows, when it was done.
        self.on_run: Callable[[RunTally, int, float], None] | None = None
        self.pools: tuple[Pool, ...] = ()
        # Read when scraped: live sessions by state, and messages that wait to run.
        self.sessions: Callable[[], dict[str, int]] = dict
        self.queued: Callable[[], int] = lambda: 0
        self._lock = threading.Lock()

    def ran(self, rows: int, computed_steps: int, compute_s: float) -> None:
        """Count a run of `rows` sessions in which `computed_steps` timesteps were computed, padding included."""
        self.computed_steps += computed_steps
        self.batch_rows.observe_one(rows)
        self.compute_s.observe_one(compute_s)

    def moved(self, spilled: int, returned: int, took_s: float) -> None:
        """Count sessions that left the device and that came back; a run or a copy waited `took_s` for these."""
        self.spills += spilled
        self.spill_returns += returned
        if returned:
            self.spill_return_s.observe_one(took_s)

    def delivered(self, run: RunTally, rows: int, done_s: float) -> None:
        """Count a run of `rows` rows, the last of whose replies was handed over at `done_s`."""
        self.steps += run.steps
        self.chunks += run.chunks
        self.queue_wait_s.observe(run.waits_s)
        self.step_latency_s.observe(run.latencies_s)
        self.requests.ran(run, rows, done_s)
        if self.on_run is not None:
            self.on_run(run, rows, done_s)

    def answered(self, inferences: int, latency_s: float, computed: Computed | None) -> None:
        """Count a request that is answered apart from a run, of `inferences` rows, and what runs spent on it."""
        self.step_latency_s.observe_one(latency_s)
        self.requests.answered(inferences, latency_s, computed)

    def generation_ended(self, reason: str) -> None:
        """Count a generation that ended for `reason`, a label of the metric. For the engine thread."""
        self.generations_ended[reason] += 1

    def session_opened(self, count: int = 1) -> None:
        """Count `count` opened sessions."""
        with self._lock:
            self.opened += count

    def session_ended(self, reason: str, count: int = 1) -> None:
        """Count `count` sessions that ended for `reason`: "closed", "cancelled", "session_expired", …."""
        if count:
            with self._lock:
                self.ended[reason] += count

    def session_resumed(self, source: str, result: str, replies: int = 0) -> None:
        """Count an opening that resumes a session.

        Args:
            source: where the session was: "detached", "stream" (another one had it), or "restart" (an earlier process
                had left it).
            result: "resumed", "state_behind" or "replies_gone".
            replies: how many replies were sent again.
        """
        with self._lock:
            self.resumes[source, result] += 1
            self.replies_resent += replies

    def state_copied(self, kind: str, sessions: int = 1) -> None:
        """Count sessions that were copied: "snapshot", "fork", "restore" (a new session) or "rewind"."""
        with self._lock:
            self.state_copies[kind] += sessions

    def work_cancelled(self, chunks: int) -> None:
        """Count `chunks` queued messages that were dropped because their session had ended."""
        with self._lock:
            self.cancelled += chunks

    def attach(self, pool: Pool) -> None:
        """Include `pool` from now on."""
        with self._lock:
            self.pools = (*self.pools, pool)

    def detach(self, pool: Pool) -> None:
        """Exclude `pool` from now on."""
        with self._lock:
            self.pools = tuple(each for each in self.pools if each is not pool)

    @property
    def pending(self) -> int:
        """The number of requests that wait to run."""
        return self.queued() + sum(pool.rows_waiting() for pool in self.pools)

    def request_failed(self, error: ServiceError, requests: int = 1, total_s: float = 0.0) -> None:
        """Count `requests` requests refused with `error`; `total_s` is the sum of their times since arrival.

        Errors that end a session and answer no request, such as SESSION_EXPIRED, are not counted.
        """
        reason = failure_reason(error)
        if reason is not None and requests:
            self.requests.fail(reason, requests, total_s)

    def request_figures(self) -> RequestFigures:
        """This model's requests as Triton counts them."""
        return self.requests.figures(self.cancelled)
