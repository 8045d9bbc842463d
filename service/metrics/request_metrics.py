"""A model's requests as Triton counts them, for `ModelStatistics` and the `nv_inference_*` metrics.

A request is one message of a stream, one frame, or one unary call. `ModelMetrics.request_figures` reads the counts and
`ModelMetrics.request_failed` counts a refusal; the thread that runs a batch counts all else.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

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
    """A number of requests, and the sum of their times."""

    count: int
    total_s: float

    @property
    def total_ns(self) -> int:
        """`total_s` in whole nanoseconds."""
        return round(self.total_s * 1e9)

    @property
    def total_us(self) -> int:
        """`total_s` in whole microseconds."""
        return round(self.total_s * 1e6)


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """Totals since the model was loaded; they never fall.

    Attributes:
        success: requests answered, from arrival to handing the reply over.
        failed: requests refused or lost, by Triton's reason, all of `FAILURES`.
        fail_s: sum of the times from arrival to refusal; 0 for requests refused on arrival.
        queue: from arrival to the batch that took the request.
        compute_input, compute_infer, compute_output: gathering the batch, the model's run, cutting the outputs. As in
            Triton, each request counts the whole time of its batch.
        inferences: requests answered; a request of B rows counts as B.
        executions: runs of the model.
        last_ms: when the model last ran, milliseconds since 1970; 0 for never.
    """

    success: Spent
    failed: Mapping[str, int]
    fail_s: float
    queue: Spent
    compute_input: Spent
    compute_infer: Spent
    compute_output: Spent
    inferences: int
    executions: int
    last_ms: int

    @property
    def fail(self) -> Spent:
        """The sum of all failures."""
        return Spent(sum(self.failed.values()), self.fail_s)


class RequestMetrics:
    """The counts that the histograms of `ModelMetrics` do not contain."""

    def __init__(self) -> None:
        self.input_s = self.infer_s = self.output_s = 0.0
        self.inferences = 0
        self.last_ms = 0
        self.failed: Counter[str] = Counter()
        self.fail_s = 0.0
        self._lock = threading.Lock()

    def computed(
        self, requests: int, inferences: int, input_s: float, infer_s: float, output_s: float
    ) -> None:
        """Count a completed batch. For the thread that ran it.

        Args:
            requests: requests of which a part ran in it.
            inferences: rows of the requests that it completed.
            input_s, infer_s, output_s: time before, in and after the run.
        """
        self.input_s += input_s * requests
        self.infer_s += infer_s * requests
        self.output_s += output_s * requests
        self.inferences += inferences
        self.last_ms = time.time_ns() // 1_000_000

    def fail(self, reason: str, requests: int, total_s: float) -> None:
        """Count `requests` requests that failed for one of Triton's reasons, and the sum of their times."""
        with self._lock:
            self.failed[reason] += requests
            self.fail_s += total_s


def failure_reason(error: ServiceError) -> str | None:
    """Triton's reason for a request refused with `error`; None for an error that ends a session, not a request."""
    if isinstance(error, EngineFailed | RefusedByModel):
        return BACKEND
    if isinstance(error, SessionLimit):
        return REJECTED
    return OTHER if isinstance(error, InvalidArgument | MessageTooLarge) else None
