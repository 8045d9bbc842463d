"""Both lanes, held to one behaviour: unary calls, other handlers and interceptors beside them."""

from __future__ import annotations

import queue
import threading
from typing import Any

import grpc
import pytest

from streamcell.service.transport.calls import Call, UnaryCall
from streamcell.service.transport.fast_lane import FastLane
from tests.support.lanes import CANCELLED, WAIT_S, Echo, Feed, Rig, Start, status


def test_a_unary_call_is_answered(rig: Start) -> None:
    served = rig()
    assert [served.unary(b"%03d" % n).result() for n in range(300)] == [
        (b"%03d" % n)[::-1] for n in range(300)
    ]
    call, _ = served.requests.get(timeout=WAIT_S)
    assert call.peer.startswith("ipv4:127.0.0.1:")


def test_unary_calls_are_answered_later_from_another_thread_and_once(rig: Start) -> None:
    served = rig()
    served.on_request = lambda call, data: None
    results = [served.unary(b"%d" % number) for number in range(32)]
    waiting = [served.requests.get(timeout=WAIT_S) for _ in results]
    for call, data in waiting:
        call.answer(data)
        call.answer(b"again")
        call.fail(grpc.StatusCode.ABORTED, "too late")
    assert [result.result() for result in results] == [b"%d" % number for number in range(32)]


def test_a_unary_call_fails_with_code_details_and_metadata(rig: Start) -> None:
    served = rig()
    trailing = (("why", "test"), ("why-bin", b"\x00\xff"))
    served.on_request = lambda call, data: call.fail(grpc.StatusCode.ABORTED, "asked to", trailing)
    failed = served.unary(b"a")
    assert (failed.code(), failed.details()) == (grpc.StatusCode.ABORTED, "asked to")
    assert dict(failed.trailing_metadata()) == dict(trailing)


def test_a_fault_in_a_unary_handler_is_told_without_its_text(rig: Start) -> None:
    served = rig()

    def raise_(call: UnaryCall, data: bytes) -> None:
        raise RuntimeError("a secret of the server")

    served.on_request = raise_
    failed = served.unary(b"a")
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in failed.details()
    served.on_request = lambda call, data: call.answer(data)
    assert served.unary(b"a").result() == b"a"


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_unary_call_that_goes_away_runs_its_callback_once(rig: Start, how: str) -> None:
    served = rig()
    gone: queue.Queue[int] = queue.Queue()
    served.on_request = lambda call, data: call.on_cancel(lambda: gone.put(1))
    pending = served.unary(b"a", timeout=WAIT_S if how == "cancel" else 4)
    call, _ = served.requests.get(timeout=WAIT_S)
    if how == "cancel":
        pending.cancel()
    gone.get(timeout=WAIT_S)
    call.answer(b"late")
    call.fail(grpc.StatusCode.ABORTED, "late")
    again: queue.Queue[int] = queue.Queue()
    call.on_cancel(lambda: again.put(1))
    assert again.get(timeout=WAIT_S) == 1
    assert gone.empty()
    served.on_request = lambda call, data: call.answer(data)
    assert served.unary(b"b").result() == b"b"


def test_an_answered_unary_call_never_runs_its_callback(rig: Start) -> None:
    served = rig()
    gone: queue.Queue[int] = queue.Queue()

    def answer(call: UnaryCall, data: bytes) -> None:
        call.on_cancel(lambda: gone.put(1))
        call.answer(data)
        call.on_cancel(lambda: gone.put(2))

    served.on_request = answer
    assert served.unary(b"a").result() == b"a"
    served.close()
    assert gone.empty()


def test_cancels_that_cross_answers_leave_the_server_well(rig: Start) -> None:
    served = rig()
    served.on_request = lambda call, data: None
    for _ in range(200):
        pending = served.unary(b"a")
        call, _ = served.requests.get(timeout=WAIT_S)
        thread = threading.Thread(target=call.answer, args=(b"b",))
        thread.start()
        pending.cancel()
        thread.join()
    served.on_request = lambda call, data: call.answer(data)
    assert served.unary(b"c").result() == b"c"


def test_stop_ends_waiting_unary_calls(rig: Start) -> None:
    served = rig()
    gone = threading.Event()
    served.on_request = lambda call, data: call.on_cancel(gone.set)
    pending = served.unary(b"a")
    kept = served.requests.get(timeout=WAIT_S)
    assert served.server.stop(0.2).wait(WAIT_S)
    assert gone.wait(WAIT_S)
    assert pending.code() in (CANCELLED, grpc.StatusCode.UNAVAILABLE)
    kept[0].answer(b"late")


def test_a_unary_method_needs_a_request(rig: Start) -> None:
    served = rig()
    assert served.channel is not None
    method: Any = served.channel.stream_unary("/t/Unary")
    with pytest.raises(grpc.RpcError) as caught:
        method(iter([]), timeout=WAIT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_other_handlers_work_beside_it(rig: Start) -> None:
    plain = grpc.unary_unary_rpc_method_handler(lambda data, context: b"plain " + data)
    served = rig(others={"Plain": plain})
    assert served.channel is not None
    feed = Feed(b"a")
    call = served.stream(feed)
    assert next(call) == b"a"
    assert served.channel.unary_unary("/t/Plain")(b"b", timeout=WAIT_S) == b"plain b"
    feed.put(None)
    assert list(call) == []


class _Seeing(grpc.ServerInterceptor):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.seen.append(details.method)
        return continuation(details)


class _Wrapping(grpc.ServerInterceptor):
    """Puts a function of its own round every behaviour, as tracing does."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)

        def around(inner: Any) -> Any:
            def behaviour(requests: Any, context: grpc.ServicerContext) -> Any:
                self.called.append(details.method)
                return inner(requests, context)

            return behaviour

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(around(handler.stream_stream))
        return grpc.unary_unary_rpc_method_handler(around(handler.unary_unary))


def test_interceptors_see_the_calls(rig: Start) -> None:
    seeing = _Seeing()
    served = rig(interceptors=(seeing,))
    assert list(served.stream([b"a"])) == [b"a"]
    assert served.unary(b"ab").result() == b"ba"
    assert seeing.seen == ["/t/Stream", "/t/Unary"]


def test_interceptors_that_something_else_gives_every_server_see_the_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As instrumentation does that patches grpcio."""
    seeing, plain = _Seeing(), grpc.server
    monkeypatch.setattr(grpc, "server", lambda *given, **more: plain(*given, interceptors=(seeing,), **more))
    served = Rig(FastLane())
    try:
        assert list(served.stream([b"a"])) == [b"a"]
        assert served.unary(b"ab").result() == b"ba"
        assert seeing.seen == ["/t/Stream", "/t/Unary"]
    finally:
        served.close()


def test_interceptors_may_wrap_the_behaviour(rig: Start) -> None:
    wrapping = _Wrapping()
    served = rig(interceptors=(wrapping,))
    sent = [b"%d" % number for number in range(100)]
    assert list(served.stream(sent)) == sent
    assert status(served.stream([b"fail"])) == (grpc.StatusCode.ABORTED, "asked to")
    assert served.unary(b"ab").result() == b"ba"
    served.on_request = lambda call, data: call.fail(grpc.StatusCode.ABORTED, "asked to")
    failed = served.unary(b"a")
    assert (failed.code(), failed.details()) == (grpc.StatusCode.ABORTED, "asked to")
    assert len(wrapping.called) == 4


class Batches(Echo):
    """Answers what has arrived in one go, when it is told that all of it is there."""

    sizes: list[int]

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.waiting: list[bytes] = []
        self.sizes = []

    def take(self, data: bytes) -> bool:
        self.waiting.append(data)
        if len(self.waiting) == 1:
            assert self.call.run_after_arrivals(self.answer_all)
        return True

    def answer_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        self.sizes.append(len(waiting))
        for data in waiting:
            self.call.reply(data)
        if self.half_closed.is_set():
            self.call.end()

    def on_half_close(self) -> None:
        self.half_closed.set()
        if not self.waiting:
            self.call.end()


def test_what_is_put_off_comes_behind_what_a_client_has_pipelined() -> None:
    rig = Rig(FastLane(), Batches)
    try:
        sent = [b"%d" % number for number in range(400)]
        assert list(rig.stream(iter(sent), timeout=WAIT_S)) == sent
        (handler,) = [rig.opened.get(timeout=WAIT_S)]
        assert sum(handler.sizes) == 400
        assert max(handler.sizes) > 1
    finally:
        rig.close()
