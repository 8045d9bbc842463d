"""Spans of messages and of batches, made around calls and runs; calls without tracing do not change.

A client's W3C trace context in a call's metadata decides whether its messages are traced; without one, a share of all
messages is. A unary call is one message. A message's span lasts from its arrival until its last reply is handed over. A
batch's span begins as its rows are taken and ends with its last reply; it is linked to the spans of the messages that
it answered.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

import grpc
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from streamcell.service.access.identity import Identity
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import RunTally
from streamcell.service.transport.calls import (
    Call,
    Metadata,
    OnRequest,
    OpenStream,
    StreamHandler,
    Trailing,
    UnaryCall,
)
from streamcell.service.transport.passed_call import PassedCall

# A client may ask for every message to be traced; beyond this number a second, messages are not.
_MOST_A_SECOND = 200
# Links of one batch's span, and messages in flight on one call whose times are kept.
_MOST_LINKS, _MOST_BEGUN = 128, 4096
_HEADERS = ("traceparent", "tracestate")
_PROPAGATOR = TraceContextTextMapPropagator()


class Clock(Protocol):
    """The time, as `time` has it."""

    def perf_counter(self) -> float: ...

    def time_ns(self) -> int: ...


class Tracing:
    """Makes spans. Thread-safe."""

    def __init__(self, tracer: Tracer, ratio: float, clock: Clock = time) -> None:
        """`ratio`: the share of messages to trace on calls whose client sent no trace context."""
        self._tracer = tracer
        self._ratio = ratio
        self._clock = clock
        self._random = random.Random()
        self._second, self._count = 0, 0
        self._answered = threading.local()

    def stream(self, method: str, open_: OpenStream) -> OpenStream:
        """`open_` for calls of `method`, with tracing if it applies to them."""

        def traced(call: Call) -> StreamHandler:
            parent = trace_context(call.metadata())
            if not self._may_trace(parent):
                return open_(call)
            wrapped = _TracedCall(call, self, method, parent)
            return _TracedHandler(open_(wrapped), wrapped)

        return traced

    def unary(self, method: str, on_request: OnRequest) -> OnRequest:
        """`on_request` for calls of `method`, with tracing if it applies to them."""

        def traced(call: UnaryCall, data: bytes) -> None:
            parent = trace_context(call.metadata())
            if self._may_trace(parent) and self.takes(parent):
                call = _TracedUnary(call, self, method, parent, len(data))
            on_request(call, data)

        return traced

    def _may_trace(self, parent: Context | None) -> bool:
        """False if no message of a call with this trace context is traced."""
        if parent is None:
            return self._ratio > 0
        return get_current_span(parent).get_span_context().trace_flags.sampled

    def watch(self, metrics: ModelMetrics) -> None:
        """Make a span of each run of a model that answers traced messages."""
        metrics.on_run = lambda run, rows, done_s: self._ran(metrics, run, rows, done_s)

    def now_s(self) -> float:
        """The time of `perf_counter`."""
        return self._clock.perf_counter()

    def takes(self, parent: Context | None) -> bool:
        """Whether to trace the message that has arrived now."""
        if parent is None and self._random.random() >= self._ratio:
            return False
        second = int(self._clock.perf_counter())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= _MOST_A_SECOND

    def message(self, method: str, parent: Context | None, arrived_s: float, size: int) -> None:
        """A message that arrived at `arrived_s` has its last reply now."""
        now_s = self._clock.perf_counter()
        span = self._tracer.start_span(
            f"streamcell.{method}/message",
            # An empty context: the span is the first of its trace.
            Context() if parent is None else parent,
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.method": method, "streamcell.request_bytes": size},
            start_time=self._unix_ns(arrived_s),
        )
        span.end(self._unix_ns(now_s))
        answered = self._of_this_thread()
        answered.append((now_s, now_s - arrived_s, span.get_span_context()))

    def _of_this_thread(self) -> deque[tuple[float, float, SpanContext]]:
        """When messages were answered by this thread, their latencies, and their spans."""
        found: deque[tuple[float, float, SpanContext]] | None = getattr(self._answered, "spans", None)
        if found is None:
            found = self._answered.spans = deque(maxlen=_MOST_LINKS)
        return found

    def _ran(self, metrics: ModelMetrics, run: RunTally, rows: int, done_s: float) -> None:
        """The thread that ran a batch has answered it: the messages that it answered since the run began were in it."""
        answered = self._of_this_thread()
        if not answered:
            return
        mine = [each for each in answered if each[0] >= run.ended_s]
        answered.clear()
        if not mine:
            return
        model, version = metrics.labels
        span = self._tracer.start_span(
            "streamcell.batch",
            Context(),
            SpanKind.INTERNAL,
            {
                "streamcell.model": model,
                "streamcell.version": version,
                "streamcell.rows": rows,
                "streamcell.steps": run.steps,
                "streamcell.staging_s": run.began_s - run.taken_s,
                "streamcell.compute_s": run.ended_s - run.began_s,
            },
            [Link(context) for _, _, context in mine],
            start_time=self._unix_ns(run.taken_s),
        )
        span.end(self._unix_ns(done_s))
        for _, latency_s, context in mine:
            metrics.step_latency_s.exemplify(latency_s, f"{context.trace_id:032x}", f"{context.span_id:016x}")

    def _unix_ns(self, at_s: float) -> int:
        """A time of `perf_counter` in nanoseconds since 1970."""
        return self._clock.time_ns() - int((self._clock.perf_counter() - at_s) * 1e9)


def trace_context(metadata: Metadata) -> Context | None:
    """The client's W3C trace context; None if it sent none, or one that is malformed."""
    carrier: Mapping[str, str] = {
        key: value for key, value in metadata if key in _HEADERS and isinstance(value, str)
    }
    if "traceparent" not in carrier:
        return None
    context = _PROPAGATOR.extract(carrier, Context())
    return context if get_current_span(context).get_span_context().is_valid else None


class _TracedUnary:
    """A unary call whose span ends with its answer."""

    def __init__(
        self, call: UnaryCall, tracing: Tracing, method: str, parent: Context | None, size: int
    ) -> None:
        self.peer: str = call.peer
        self.caller: Identity = call.caller
        self._call = call
        self._tracing = tracing
        self._about = method, parent, tracing.now_s(), size
        self.metadata = call.metadata
        self.on_cancel = call.on_cancel
        self.run_after_arrivals = call.run_after_arrivals

    def answer(self, data: bytes) -> None:
        """Send the response, and end the span."""
        self._call.answer(data)
        self._tracing.message(*self._about)

    def fail(self, code: grpc.StatusCode, details: str, trailing: Trailing = ()) -> None:
        """End the call with an error, and the span."""
        self._call.fail(code, details, trailing)
        self._tracing.message(*self._about)


class _TracedCall(PassedCall):
    """A call that notes which message each reply ends. Messages are answered in order."""

    def __init__(self, call: Call, tracing: Tracing, method: str, parent: Context | None) -> None:
        super().__init__(call)
        self._tracing = tracing
        self._method = method
        self._parent = parent
        # When each message arrived that has no last reply yet, and its bytes; 0 bytes: it is not traced.
        self._begun: deque[tuple[float, int]] = deque(maxlen=_MOST_BEGUN)
        self.on = True
        self._resuming = False  # the handler of a session that outlives its calls is taking its opening

    def begin(self, size: int) -> None:
        """A message of `size` bytes has arrived, and the handler is about to take it."""
        self._resuming = False
        traced = self._tracing.takes(self._parent)
        self._begun.append((self._tracing.now_s(), max(1, size) if traced else 0))

    def hand_to(self, handler: StreamHandler) -> None:
        self._resuming = getattr(handler, "sends_again", False)
        self._call.hand_to(_TracedHandler(handler, self))

    def reply(self, data: bytes, *, last: bool = True) -> None:
        self._call.reply(data, last=last)
        if last and self.on and self._begun:
            arrived_s, size = self._begun.popleft()
            if size:
                self._tracing.message(self._method, self._parent, arrived_s, size)

    def skip(self) -> None:
        if self._begun:
            self._begun.pop()
        self._call.skip()

    def read_on(self) -> None:
        # It asks for that at its opening if replies to messages of earlier calls come unasked: to a generation, say.
        # These would be taken for those to new messages.
        if self._resuming:
            self.on = False
        self._call.read_on()


class _TracedHandler:
    """A handler whose messages' arrivals are noted."""

    def __init__(self, handler: StreamHandler, call: _TracedCall) -> None:
        self._handler = handler
        self._call = call
        self.on_half_close = handler.on_half_close
        self.on_end = handler.on_end

    def on_message(self, data: bytes) -> bool:
        """Note it, and pass it on."""
        if self._call.on:
            self._call.begin(len(data))
        return self._handler.on_message(data)
