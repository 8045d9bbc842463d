"""A model's requests as Triton counts them, for `ModelStatistics` and the `nv_inference_*` metrics.

A request is one message of a stream, one frame, or one unary call. `ModelMetrics.request_figures` reads the counts and
`ModelMetrics.request_failed` counts a refusal; the thread that runs a batch counts all else, once for each run.

A request's time is divided without gap or overlap. It is computed from the moment when a run takes it until its own
reply is handed over; for a request of several runs, these times are added. All else is the queue's. So the parts never
exceed the whole, whatever the other requests of its batches took.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from streamcell.service.errors import (
    EngineFailed,
    InvalidArgument,
    MessageTooLarge,
    RefusedByModel,
    ServiceError,
    SessionLimit,
)

# Triton's reasons. CANCELED counts messages that had not run when their session ended.
REJECTED, CANCELED, BACKEND, OTHER = FAILURES = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


@dataclass(frozen=True, slots=True)
class Spent:
    """A number of requests or runs, and the sum of their times in nanoseconds."""

    count: int
    total_ns: int

    @property
    def total_us(self) -> int:
        """Whole microseconds, rounded down: so the parts of a time never exceed it."""
        return self.total_ns // 1000


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """The runs with a number of rows: gathering the rows, the model's run, cutting the outputs and handing all over."""

    rows: int
    compute_input: Spent
    compute_infer: Spent
    compute_output: Spent


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """Totals since the model was loaded, all read at one moment; they never fall.

    Attributes:
        success: requests answered, from arrival to handing the reply over.
        failed: requests refused or lost, by Triton's reason, all of `FAILURES`.
        fail_ns: sum of the times from arrival to refusal; 0 for requests refused on arrival.
        queue: from arrival to the batch that took the request, and between its batches if it ran in several.
        compute_input, compute_infer, compute_output: gathering the batch, the model's run, and from there until the
            request's own reply was handed over. Together with `queue` they are `success`.
        inferences: requests answered; a request of B rows counts as B.
        executions: runs of the model.
        batches: these runs by their number of rows, in its order.
        last_ms: when the model last ran, milliseconds since 1970; 0 for never.
    """

    success: Spent
    failed: Mapping[str, int]
    fail_ns: int
    queue: Spent
    compute_input: Spent
    compute_infer: Spent
    compute_output: Spent
    inferences: int
    executions: int
    batches: tuple[BatchFigures, ...]
    last_ms: int

    @property
    def fail(self) -> Spent:
        """The sum of all failures."""
        return Spent(sum(self.failed.values()), self.fail_ns)


class Computed(NamedTuple):
    """What runs spent on one request, or on the sum of some: before, in and after the model's run; seconds."""

    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0


class RunTally:
    """One run: its times, and what its requests were told. The thread that runs the engine fills it.

    Attributes:
        taken_s, began_s, ended_s: when staging began, and when the run began and ended; `time.perf_counter` seconds.
        cpu_s: CPU time of the run, on its thread.
        steps, chunks: timesteps that were applied, and chunks.
        inferences: rows of requests that are answered now.
        waits_s: of requests that had their first run now, the times from arrival to the batch.
        latencies_s: of requests that are answered now, the times from arrival to reply.
        output_s: of the same, the sum of the times from the run's end to the reply.
        earlier: of the same, the sums of what earlier runs spent.
    """

    __slots__ = (
        "began_s", "chunks", "cpu_s", "earlier", "ended_s", "inferences", "latencies_s", "output_s", "steps",
        "taken_s", "waits_s",
    )  # fmt: skip

    def __init__(self, taken_s: float, began_s: float, ended_s: float, cpu_s: float = 0.0) -> None:
        self.taken_s = taken_s
        self.began_s = began_s
        self.ended_s = ended_s
        self.cpu_s = cpu_s
        self.steps = self.chunks = self.inferences = 0
        self.waits_s: list[float] = []
        self.latencies_s: list[float] = []
        self.output_s = 0.0
        self.earlier: Computed | None = None

    def answered(self, arrived_s: float, earlier: Computed | None = None) -> None:
        """Count a request whose reply is handed over now. `earlier`: what earlier runs spent on it."""
        now_s = time.perf_counter()
        self.latencies_s.append(now_s - arrived_s)
        self.output_s += now_s - self.ended_s
        if earlier is not None:
            self.earlier = _sum(self.earlier or Computed(), earlier)

    def spent(self, earlier: Computed | None = None) -> Computed:
        """What runs have spent on a request that has not been answered; `earlier`: those before this one."""
        now = Computed(
            self.began_s - self.taken_s, self.ended_s - self.began_s, time.perf_counter() - self.ended_s
        )
        return now if earlier is None else _sum(now, earlier)


def _sum(one: Computed, other: Computed) -> Computed:
    return Computed(*[a + b for a, b in zip(one, other, strict=True)])


class RequestMetrics:
    """A model's requests and runs. Thread-safe."""

    def __init__(self) -> None:
        self._count = self._success_ns = self._inferences = self._last_ms = 0
        self._computed_ns = [0, 0, 0]  # as `Computed`
        self._batches: dict[int, list[int]] = {}  # rows → number of runs, and as `Computed`
        self._failed: Counter[str] = Counter()
        self._fail_ns = 0
        self._lock = threading.Lock()

    def ran(self, run: RunTally, rows: int, done_s: float) -> None:
        """Count a run of `rows` rows whose last reply was handed over at `done_s`; 0 rows: only what was answered."""
        count = len(run.latencies_s)
        input_s, infer_s = run.began_s - run.taken_s, run.ended_s - run.began_s
        own_s = (input_s, infer_s, done_s - run.ended_s)
        answered_s = (input_s * count, infer_s * count, run.output_s)
        if run.earlier is not None:
            answered_s = _sum(Computed(*answered_s), run.earlier)
        computed_ns = self._computed_ns
        with self._lock:
            self._count += count
            self._inferences += run.inferences
            self._success_ns += int(sum(run.latencies_s) * 1e9)
            computed_ns[0] += int(answered_s[0] * 1e9)
            computed_ns[1] += int(answered_s[1] * 1e9)
            computed_ns[2] += int(answered_s[2] * 1e9)
            if rows:
                self._last_ms = time.time_ns() // 1_000_000
                batches = self._batches.get(rows)
                if batches is None:
                    batches = self._batches[rows] = [0, 0, 0, 0]
                batches[0] += 1
                batches[1] += int(own_s[0] * 1e9)
                batches[2] += int(own_s[1] * 1e9)
                batches[3] += int(own_s[2] * 1e9)

    def answered(self, inferences: int, latency_s: float, computed: Computed | None) -> None:
        """Count a request that is answered apart from a run, of `inferences` rows."""
        apart = RunTally(0.0, 0.0, 0.0)
        apart.inferences, apart.latencies_s, apart.earlier = inferences, [latency_s], computed
        self.ran(apart, 0, 0.0)

    def fail(self, reason: str, requests: int, total_s: float) -> None:
        """Count `requests` requests that failed for one of Triton's reasons, and the sum of their times."""
        with self._lock:
            self._failed[reason] += requests
            self._fail_ns += int(total_s * 1e9)

    def figures(self, cancelled: int) -> RequestFigures:
        """All figures. `cancelled`: messages that were dropped because their session had ended."""
        with self._lock:
            count, success_ns, computed_ns = self._count, self._success_ns, tuple(self._computed_ns)
            batches = sorted((rows, tuple(each)) for rows, each in self._batches.items())
            failed = {reason: self._failed[reason] for reason in FAILURES}
            fail_ns, inferences, last_ms = self._fail_ns, self._inferences, self._last_ms
        failed[CANCELED] += cancelled
        return RequestFigures(
            success=Spent(count, success_ns),
            failed=failed,
            fail_ns=fail_ns,
            queue=Spent(count, max(0, success_ns - sum(computed_ns))),
            compute_input=Spent(count, computed_ns[0]),
            compute_infer=Spent(count, computed_ns[1]),
            compute_output=Spent(count, computed_ns[2]),
            inferences=inferences,
            executions=sum(runs for _, (runs, *_) in batches),
            batches=tuple(
                BatchFigures(rows, *[Spent(runs, total_ns) for total_ns in times_ns])
                for rows, (runs, *times_ns) in batches
            ),
            last_ms=last_ms,
        )


def failure_reason(error: ServiceError) -> str | None:
    """Triton's reason for a request refused with `error`; None for an error that ends a session, not a request."""
    if isinstance(error, EngineFailed | RefusedByModel):
        return BACKEND
    if isinstance(error, SessionLimit):
        return REJECTED
    return OTHER if isinstance(error, InvalidArgument | MessageTooLarge) else None
