"""Which messages get a span, when it begins and ends, and which batch it is linked to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streamcell.service.access.identity import ANYONE
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import RunTally
from streamcell.service.telemetry.tracing import Tracing, trace_context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (("traceparent", f"00-{TRACE}-{SPAN}-01"),)
UNSAMPLED = (("traceparent", f"00-{TRACE}-{SPAN}-00"),)


class Clock:
    now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def time_ns(self) -> int:
        return int((1_700_000_000 + self.now_s) * 1e9)


class Call:
    """A call whose replies are counted."""

    peer, gone, again = "ipv4:127.0.0.1:1", "cancelled", False
    caller = ANYONE

    def __init__(self, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self._metadata = metadata
        self.replies: list[bytes] = []
        self.handler: Any = None

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata

    def reply(self, data: bytes, *, last: bool = True) -> None:
        self.replies.append(data)

    def skip(self) -> None:
        pass

    def read_on(self) -> None:
        pass

    def hand_to(self, handler: Any) -> None:
        self.handler = handler


class Handler:
    """Does with each message what the test says."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.on = lambda data: None

    def on_message(self, data: bytes) -> bool:
        self.on(data)
        return True

    def on_half_close(self) -> None: ...

    def on_end(self, cancelled: bool) -> None: ...


class Rig:
    def __init__(self, ratio: float = 0.0) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.clock = Clock()
        self.tracing = Tracing(provider.get_tracer("test"), ratio, self.clock)
        self.metrics = ModelMetrics("m", "1")
        self.tracing.watch(self.metrics)

    def open(self, metadata: Any = SAMPLED) -> tuple[Call, Any, Any]:
        call = Call(metadata)
        inner: list[Handler] = []

        def make(given: Any) -> Handler:
            inner.append(Handler(given))
            return inner[0]

        outer = self.tracing.stream("Stream", make)(call)  # type: ignore[arg-type]
        return call, outer, inner[0]

    def after(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def run(self, answer: Callable[[], None]) -> None:
        """A batch that is taken now, runs for 2 ms and then answers."""
        taken_s = self.clock.now_s
        run = RunTally(taken_s, taken_s, taken_s + 0.002)
        self.after(0.002)
        answer()
        run.steps = 3
        self.metrics.delivered(run, 2, self.clock.now_s)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


MESSAGE, BATCH = "streamcell.Stream/message", "streamcell.batch"


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_message_s_span_lasts_until_its_reply_and_is_the_client_s_child(rig: Rig) -> None:
    call, outer, inner = rig.open()
    outer.on_message(b"12345")
    rig.after(0.25)
    inner.call.reply(b"reply")
    assert call.replies == [b"reply"]
    (span,) = rig.spans(MESSAGE)
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert (span.end_time or 0) - (span.start_time or 0) == pytest.approx(0.25e9, abs=1e3)
    assert dict(span.attributes or {})["streamcell.request_bytes"] == 5


def test_messages_ahead_of_their_replies_are_told_apart(rig: Rig) -> None:
    _, outer, inner = rig.open()
    for size in (1, 2, 3):
        outer.on_message(b"x" * size)
        rig.after(1.0)
    for _ in range(3):
        inner.call.reply(b"")
    found = [
        (dict(s.attributes or {})["streamcell.request_bytes"], (s.end_time or 0) - (s.start_time or 0))
        for s in rig.spans(MESSAGE)
    ]
    assert [size for size, _ in found] == [1, 2, 3]
    assert [round(took / 1e9) for _, took in found] == [3, 2, 1]


def test_a_generation_ends_with_its_last_reply_and_a_message_without_one_has_no_span(rig: Rig) -> None:
    _, outer, inner = rig.open()
    outer.on_message(b"generate")
    inner.call.reply(b"", last=False)
    assert rig.spans(MESSAGE) == []
    inner.on = lambda data: inner.call.skip()
    outer.on_message(b"stop")
    inner.call.reply(b"", last=True)
    inner.call.reply(b"", last=True)  # one too many
    assert len(rig.spans(MESSAGE)) == 1


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        UNSAMPLED,
        (("traceparent", "00-nonsense"),),
        (("traceparent", b"\xff\xff"),),
        (("traceparent", f"00-{'0' * 32}-{SPAN}-01"),),
    ],
)
def test_a_call_that_is_not_traced_is_the_lane_s_own(metadata: Any, rig: Rig) -> None:
    call, outer, inner = rig.open(metadata)
    assert outer is inner
    assert inner.call is call


def test_without_a_context_a_share_of_messages_is_traced_and_an_unsampled_context_still_is_not() -> None:
    rig = Rig(0.5)
    _, outer, inner = rig.open(())
    for _ in range(200):
        outer.on_message(b"x")
        inner.call.reply(b"")
        rig.after(0.1)
    assert 50 < len(rig.spans(MESSAGE)) < 150
    assert len({span.context.trace_id for span in rig.spans(MESSAGE) if span.context}) == len(
        rig.spans(MESSAGE)
    )
    _, outer, inner = rig.open(UNSAMPLED)
    assert outer is inner


def test_no_client_can_ask_for_any_number_of_spans(rig: Rig) -> None:
    _, outer, inner = rig.open()
    for _ in range(1000):
        outer.on_message(b"x")
        inner.call.reply(b"")
    assert len(rig.spans(MESSAGE)) == 200
    rig.after(1.0)
    outer.on_message(b"x")
    inner.call.reply(b"")
    assert len(rig.spans(MESSAGE)) == 201


def test_a_batch_is_linked_to_the_messages_that_it_answers_and_to_no_others(rig: Rig) -> None:
    (_, one, first), (_, two, second), (_, three, third) = rig.open(), rig.open(), rig.open()
    for outer in (one, two, three):
        outer.on_message(b"x")
    third.call.reply(b"")  # answered without a run
    rig.after(0.5)

    def answer() -> None:
        first.call.reply(b"")
        rig.after(0.001)
        second.call.reply(b"")

    rig.run(answer)
    (batch,) = rig.spans(BATCH)
    answered = [span.context for span in rig.spans(MESSAGE)][1:]
    assert [link.context for link in batch.links] == answered
    assert (batch.end_time or 0) - (batch.start_time or 0) == pytest.approx(3e6, abs=1e3)
    assert dict(batch.attributes or {})["streamcell.rows"] == 2
    rig.run(lambda: None)
    assert len(rig.spans(BATCH)) == 1  # a run without traced messages has no span
    value, _, trace_id, _ = next(iter(rig.metrics.step_latency_s.exemplars().values()))
    assert (trace_id, value) == (TRACE, pytest.approx(0.5, abs=0.01))


class Resumed(Handler):
    sends_again = True


def resumed(rig: Rig, *, unasked: bool) -> tuple[Any, Any]:
    """A call on a session that outlives its calls; `unasked`: replies to earlier messages may still come."""
    call, outer, inner = rig.open()
    handler = Resumed(inner.call)

    def take(data: bytes) -> None:
        inner.call.hand_to(handler)
        if unasked:
            inner.call.read_on()

    inner.on = take
    outer.on_message(b"open")
    for last in (False, False, True):  # the greeting and what the client lacks
        inner.call.reply(b"again", last=last)
    return call.handler, inner


def test_what_a_resumed_session_sends_again_belongs_to_the_opening(rig: Rig) -> None:
    handler, inner = resumed(rig, unasked=False)
    assert len(rig.spans(MESSAGE)) == 1
    rig.after(1.0)
    handler.on_message(b"step")
    rig.after(0.5)
    inner.call.reply(b"")
    _, span = rig.spans(MESSAGE)
    assert (span.end_time or 0) - (span.start_time or 0) == pytest.approx(0.5e9, abs=1e3)
    inner.call.read_on()  # for a generation of its own
    handler.on_message(b"generate")
    inner.call.reply(b"")
    assert len(rig.spans(MESSAGE)) == 3


def test_a_session_whose_earlier_messages_still_get_replies_is_not_traced(rig: Rig) -> None:
    handler, inner = resumed(rig, unasked=True)
    handler.on_message(b"step")
    inner.call.reply(b"of a generation that goes on")
    inner.call.reply(b"")
    assert rig.spans(MESSAGE) == []


class Unary:
    """A unary call that notes its answer."""

    peer, caller = "ipv4:127.0.0.1:1", ANYONE

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata
        self.answers: list[Any] = []
        self.answer = self.answers.append

    def metadata(self) -> Any:
        return self._metadata

    def fail(self, *status: Any) -> None:
        self.answers.append(status)

    def on_cancel(self, callback: Any) -> None: ...

    def run_after_arrivals(self, callback: Any) -> bool:
        return False


@pytest.mark.parametrize("fails", [False, True])
def test_a_unary_call_is_one_message_and_its_batch_is_linked(rig: Rig, fails: bool) -> None:
    call = Unary(SAMPLED)
    given: list[Any] = []
    rig.tracing.unary("Predict", lambda traced, data: given.append(traced))(call, b"1234")  # type: ignore[arg-type]
    rig.after(0.25)
    rig.run(lambda: given[0].fail("code", "text") if fails else given[0].answer(b"y"))
    assert call.answers == [("code", "text", ()) if fails else b"y"]
    (span,) = rig.spans("streamcell.Predict/message")
    assert (span.end_time or 0) - (span.start_time or 0) == pytest.approx(0.252e9, abs=1e3)
    (batch,) = rig.spans(BATCH)
    assert [link.context for link in batch.links] == [span.context]


def test_a_unary_call_that_is_not_traced_is_the_lane_s_own(rig: Rig) -> None:
    for metadata in ((), UNSAMPLED):
        call, given = Unary(metadata), []
        rig.tracing.unary("Predict", lambda traced, data: given.append(traced))(call, b"")  # type: ignore[arg-type]  # noqa: B023
        assert given == [call]


def test_a_context_is_read_from_what_a_client_may_send() -> None:
    assert trace_context((("other", "x"), *SAMPLED, ("tracestate", "a=b"))) is not None
    assert trace_context((("tracestate", "a=b"),)) is None
