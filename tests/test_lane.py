"""Both lanes, one behaviour: order, pipelining, back-pressure, every way for a call to end, and nothing kept."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from streamcell.service.calls import Call, Lane, UnaryCall
from streamcell.service.fast_lane import FastLane
from streamcell.service.threaded_lane import ThreadedLane

PATIENCE_S = 20


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether `holds` comes true within the test's patience."""
    end_s = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < end_s:
        time.sleep(0.01)
    return holds()


class Handler:
    """Answers on the reading thread, or on another where `room` bounds what may wait."""

    def __init__(self, call: Call, log: Log) -> None:
        self.call = call
        self.log = log
        self.waiting: list[bytes] = []
        self.half_closed = False
        log.calls.append(call)

    def on_message(self, data: bytes) -> bool:
        if data == b"boom":
            raise ValueError("a bug")
        if data == b"fail":
            self.call.end(grpc.StatusCode.ABORTED, "asked to", (("reason", "test"), ("raw-bin", b"\xff\x00")))
        elif data == b"hold":
            self.log.held.set()
        elif self.log.room:
            with self.log.lock:
                self.waiting.append(data)
                self.log.most = max(self.log.most, len(self.waiting))
                self.log.work.put(self)
                return len(self.waiting) < self.log.room
        else:
            self.call.reply(data)
        return True

    def answer_one(self) -> None:
        with self.log.lock:
            data = self.waiting.pop(0)
            done = self.half_closed and not self.waiting
        self.call.reply(data)
        self.call.resume()
        if done:
            self.call.end()

    def on_half_close(self) -> None:
        with self.log.lock:
            self.half_closed = True
            done = not self.waiting
        if done:
            self.call.end()

    def on_end(self, cancelled: bool) -> None:
        self.log.ends.append(cancelled)


class Log:
    """What the handlers of one server saw, and the thread that answers where `room` is set."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.ends: list[bool] = []
        self.cancelled: list[bytes] = []
        self.held = threading.Event()
        self.room = 0
        self.most = 0
        self.lock = threading.Lock()
        self.work: queue.Queue[Handler | None] = queue.Queue()
        self.answering = threading.Thread(target=self.answer, daemon=True)
        self.answering.start()

    def answer(self) -> None:
        while (handler := self.work.get()) is not None:
            handler.answer_one()


class Served:
    def __init__(self, lane: Lane) -> None:
        self.lane = lane.name
        self.log = Log()
        self.server = grpc.server(
            futures.ThreadPoolExecutor(lane.workers), options=[("grpc.max_receive_message_length", 1 << 20)]
        )

        def request(call: UnaryCall, data: bytes) -> None:
            if data == b"boom":
                raise ValueError("a bug")
            if data == b"hold":
                call.on_cancel(lambda: self.log.cancelled.append(data))
            elif data == b"fail":
                call.fail(grpc.StatusCode.ABORTED, "asked to", (("reason", "test"),))
                call.answer(b"too late")
            elif data == b"later":
                threading.Timer(0.05, lambda: call.answer(b"now")).start()
            else:
                call.answer(data[::-1])
                call.fail(grpc.StatusCode.ABORTED, "too late")

        methods = {"Stream": lane.stream(lambda call: Handler(call, self.log)), "Unary": lane.unary(request)}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.channel = self.connect()
        self.stream: Any = self.channel.stream_stream("/test/Stream")
        self.unary: Any = self.channel.unary_unary("/test/Unary")

    def connect(self) -> grpc.Channel:
        return grpc.insecure_channel(
            f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def ended(self, *cancelled: bool) -> bool:
        """Whether so many calls have ended, cancelled or not. What the client cancels can look half-closed at first,
        and grpcio's public API, which the threaded lane keeps to, does not tell which it was."""
        if not eventually(lambda: len(self.log.ends) == len(cancelled)):
            return False
        return self.lane == "threaded" or self.log.ends == list(cancelled)


@pytest.fixture(params=[FastLane, ThreadedLane])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    served = Served(request.param())
    yield served
    served.channel.close()
    served.server.stop(0).wait(PATIENCE_S)
    served.log.work.put(None)


def then_wait(*messages: bytes) -> tuple[Iterator[bytes], threading.Event]:
    """An iterator of requests that stays open until the event is set."""
    release = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from messages
        release.wait(PATIENCE_S)

    return requests(), release


@pytest.mark.parametrize("count", [0, 1, 3, 3000])
@pytest.mark.parametrize("room", [0, 1, 5])
def test_replies_come_in_order_and_half_close_ends_well(served: Served, count: int, room: int) -> None:
    served.log.room = room
    sent = [b"%d" % number for number in range(count)]
    call = served.stream(iter(sent))
    assert list(call) == sent
    assert call.code() is grpc.StatusCode.OK
    assert served.ended(False)
    # One message more than there is room for may have been on its way.
    assert served.log.most <= room + 1


@pytest.mark.parametrize("room", [0, 1, 4])
def test_a_client_may_wait_for_any_number_of_answers(served: Served, room: int) -> None:
    """Windows of every size: nothing may hang on a message that the client sends only after its answers."""
    served.log.room = room
    feed: queue.Queue[bytes | None] = queue.Queue()
    call = served.stream(iter(feed.get, None), timeout=PATIENCE_S)
    for window in [1, 2, 3, 1, 1, 7, 1, 40, 2, 100, *[1] * 40, 3, 3, 3, *[2] * 30]:
        sent = [b"%d" % number for number in range(window)]
        for message in sent:
            feed.put(message)
        assert [next(call) for _ in sent] == sent
    feed.put(None)
    assert list(call) == []


def test_a_call_can_be_ended_from_another_thread_while_its_client_waits(served: Served) -> None:
    requests, release = then_wait(b"a", b"b")
    call = served.stream(requests)
    assert [next(call), next(call)] == [b"a", b"b"]
    (ours,) = served.log.calls
    ours.end(grpc.StatusCode.ABORTED, "idle")
    ours.end(grpc.StatusCode.INTERNAL, "the first end stands")
    ours.reply(b"ignored")
    with pytest.raises(grpc.RpcError):
        next(call)
    assert (call.code(), call.details()) == (grpc.StatusCode.ABORTED, "idle")
    release.set()
    assert served.ended(False)


def test_replies_before_an_error_arrive_and_its_metadata_too(served: Served) -> None:
    got: list[bytes] = []
    call = served.stream(iter([b"a", b"b", b"fail", b"c"]))
    with pytest.raises(grpc.RpcError):
        got.extend(iter(call))
    assert got == [b"a", b"b"]
    assert (call.code(), call.details()) == (grpc.StatusCode.ABORTED, "asked to")
    trailing = dict(call.trailing_metadata())
    assert (trailing["reason"], trailing["raw-bin"]) == ("test", b"\xff\x00")
    assert served.ended(False)


def test_a_bug_in_a_handler_ends_its_call_and_no_other(served: Served) -> None:
    requests, release = then_wait(b"a")
    other = served.stream(requests)
    assert next(other) == b"a"
    with pytest.raises(grpc.RpcError) as caught:
        list(served.stream(iter([b"boom"])))
    assert caught.value.code() is grpc.StatusCode.INTERNAL  # type: ignore[attr-defined]
    assert caught.value.details() == "internal error"  # type: ignore[attr-defined]
    release.set()
    assert list(other) == []


def test_cancel_deadline_and_disconnect_each_end_the_call_once(served: Served) -> None:
    requests, release = then_wait(b"a")
    call = served.stream(requests)
    assert next(call) == b"a"
    call.cancel()
    assert served.ended(True)
    with pytest.raises(grpc.RpcError) as caught:
        list(served.stream(then_wait(b"hold")[0], timeout=0.2))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    assert served.ended(True, True)
    with served.connect() as channel:
        stream: Any = channel.stream_stream("/test/Stream")
        assert next(stream(then_wait(b"a")[0])) == b"a"
    assert served.ended(True, True, True)
    release.set()


def test_a_message_over_the_transports_limit_ends_the_call(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(served.stream(iter([bytes(2 << 20)])))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    assert eventually(lambda: len(served.log.ends) == 1)


def test_a_client_that_does_not_read_is_not_read(served: Served) -> None:
    sent = 0

    def flood() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(600):
            sent += 1
            yield bytes(100_000)

    call = served.stream(flood())
    last = -1
    while sent != last:
        last = sent
        time.sleep(0.3)
    assert sent < 600
    assert sum(1 for _ in call) == 600


def test_stop_ends_streams_that_are_open(served: Served) -> None:
    requests, release = then_wait(b"a")
    call = served.stream(requests)
    assert next(call) == b"a"
    served.server.stop(0.2).wait(PATIENCE_S)
    with pytest.raises(grpc.RpcError):
        next(call)
    assert len(served.log.ends) == 1
    release.set()


def test_unary_calls_answer_once_from_any_thread(served: Served) -> None:
    assert [served.unary(b"%03d" % number) for number in range(300)] == [
        (b"%03d" % number)[::-1] for number in range(300)
    ]
    assert served.unary(b"later") == b"now"


def test_unary_errors_carry_metadata_and_bugs_do_not_leak(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.unary(b"fail")
    error: Any = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "asked to")
    assert dict(error.trailing_metadata())["reason"] == "test"
    with pytest.raises(grpc.RpcError) as caught:
        served.unary(b"boom")
    error = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert served.unary(b"ab") == b"ba"


def test_a_unary_call_whose_client_goes_tells_its_handler_once(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.unary(b"hold", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    assert eventually(lambda: served.log.cancelled == [b"hold"])


def test_calls_that_are_over_are_not_kept() -> None:
    served = Served(FastLane())
    calls = []
    for _ in range(300):
        requests, release = then_wait(b"a")
        call = served.stream(requests)
        next(call)
        calls.append((call, release))
    for call, release in calls:
        call.cancel()
        release.set()
    for _ in range(300):
        served.unary(b"a")
    assert eventually(lambda: len(served.log.ends) == 300)
    served.log.calls.clear()

    def kept() -> int:
        gc.collect()
        return sum(type(each).__module__ == "streamcell.service.lane" for each in gc.get_objects())

    # The lane itself and its executor; the last call's tags may wait for the next event.
    assert eventually(lambda: kept() <= 5)
    served.channel.close()
    served.server.stop(0).wait(PATIENCE_S)
    served.log.work.put(None)
