"""A model's requests as Triton counts them: what `ModelStatistics` and the `nv_inference_*` metrics are made of.

A request is one message of a stream, one frame, or one unary call. `ModelMetrics.request_figures` is the way to read
them and `ModelMetrics.request_failed` the way to report a refusal; all else is counted by the engine's thread.
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

# Triton's reasons. CANCELED are the messages that a session left unrun when it ended.
REJECTED, CANCELED, BACKEND, OTHER = FAILURES = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


@dataclass(frozen=True, slots=True)
class Spent:
    """How many requests, and the time of all of them together."""

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
    """Totals since the model was loaded; none of them ever falls.

    Attributes:
        success: requests answered, from arrival to the reply on its way.
        failed: requests refused or lost, by Triton's reason, all of `FAILURES`.
        fail_s: from arrival to the refusal, all of them together; 0 for what is refused on arrival.
        queue: from arrival to the batch that took the request.
        compute_input, compute_infer, compute_output: gathering the batch, the model's run, cutting the outputs. As
            Triton does, each request is given the whole time of its batch.
        inferences: requests answered, one of B rows counted as B.
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
        """All failures together."""
        return Spent(sum(self.failed.values()), self.fail_s)


class RequestMetrics:
    """What the histograms of `ModelMetrics` do not hold already."""

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
        """A batch is done; for the engine's thread.

        Args:
            requests: those of which a part ran in it.
            inferences: rows of requests that it completed.
            input_s, infer_s, output_s: before, in and after the run.
        """
        self.input_s += input_s * requests
        self.infer_s += infer_s * requests
        self.output_s += output_s * requests
        self.inferences += inferences
        self.last_ms = time.time_ns() // 1_000_000

    def fail(self, reason: str, requests: int, total_s: float) -> None:
        """`requests` requests failed for one of Triton's reasons, `total_s` after their arrivals in all."""
        with self._lock:
            self.failed[reason] += requests
            self.fail_s += total_s


def failure_reason(error: ServiceError) -> str | None:
    """Triton's reason for a request that `error` refused; None for an error that ends a session, not a request."""
    if isinstance(error, EngineFailed | RefusedByModel):
        return BACKEND
    if isinstance(error, SessionLimit):
        return REJECTED
    return OTHER if isinstance(error, InvalidArgument | MessageTooLarge) else None
