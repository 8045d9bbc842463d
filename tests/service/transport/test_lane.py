"""Both lanes, held to one behaviour: a real server and a real client over loopback."""

from __future__ import annotations

import gc
import queue
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from streamcell.service.transport.calls import Call, ServerLane, UnaryCall
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.read_pacing import PAUSE_REPLIES
from streamcell.service.transport.threaded_lane import ThreadedLane

WAIT_S = 20.0
CANCELLED = grpc.StatusCode.CANCELLED


class Echo:
    """Answers each message with itself, at once; obeys a few commands; keeps what happened to it."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.messages: list[bytes] = []
        self.half_closed = threading.Event()
        self.ended = threading.Event()
        self.ends: list[bool] = []
        self.got: queue.Queue[bytes] = queue.Queue()

    def on_message(self, data: bytes) -> bool:
        self.messages.append(data)
        self.got.put(data)
        return self.take(data)

    def take(self, data: bytes) -> bool:
        if data == b"raise":
            raise RuntimeError("a secret of the server")
        if data == b"fail":
            self.call.end(grpc.StatusCode.ABORTED, "asked to", (("why", "test"), ("why-bin", b"\x00\xff")))
        elif data == b"reply and end":
            self.call.reply(data)
            self.call.end(grpc.StatusCode.ABORTED, "after the reply")
        elif data != b"hold":
            self.call.reply(data)
        return True

    def on_half_close(self) -> None:
        self.half_closed.set()
        self.call.end()

    def on_end(self, cancelled: bool) -> None:
        self.ends.append(cancelled)
        self.ended.set()


class Engine(Echo):
    """Answers from a thread of its own, as the engine does."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.work: queue.Queue[bytes | None] = queue.Queue()
        self.unfinished = 0
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.answer_all, daemon=True)
        self.thread.start()

    def take(self, data: bytes) -> bool:
        with self.lock:
            self.unfinished += 1
        self.work.put(data)
        return True

    def answer_all(self) -> None:
        while (data := self.work.get()) is not None:
            self.call.reply(data)
            with self.lock:
                self.unfinished -= 1
                done = self.half_closed.is_set() and not self.unfinished
            if done:
                self.call.end()

    def on_half_close(self) -> None:
        with self.lock:
            self.half_closed.set()
            done = not self.unfinished
        if done:
            self.call.end()

    def on_end(self, cancelled: bool) -> None:
        self.work.put(None)
        super().on_end(cancelled)


class Feed:
    """A client's messages, put in one by one; `None` half-closes."""

    def __init__(self, *messages: bytes | None) -> None:
        self.queue: queue.Queue[bytes | None] = queue.Queue()
        self.put(*messages)

    def put(self, *messages: bytes | None) -> None:
        for message in messages:
            self.queue.put(message)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.queue.get, None)


class Rig:
    """One server on one lane, and its client."""

    def __init__(self, lane: ServerLane, open_: Callable[[Call], Any] = Echo, **server: Any) -> None:
        self.opened: queue.Queue[Any] = queue.Queue()
        self.requests: queue.Queue[tuple[UnaryCall, bytes]] = queue.Queue()
        self.on_request: Callable[[UnaryCall, bytes], None] = lambda call, data: call.answer(data[::-1])
        credentials = server.pop("credentials", None)
        others = server.pop("others", {})

        def open_and_note(call: Call) -> Any:
            handler = open_(call)
            self.opened.put(handler)
            return handler

        def request(call: UnaryCall, data: bytes) -> None:
            self.requests.put((call, data))
            self.on_request(call, data)

        if "interceptors" in server:
            self.server = grpc.server(futures.ThreadPoolExecutor(64), **server)
        else:
            self.server = lane.server(**server, spin_s=100e-6)
        methods = {"Stream": lane.stream(open_and_note), "Unary": lane.unary(request), **others}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", methods),))
        if credentials is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self.server.add_secure_port("localhost:0", credentials)
        self.server.start()
        self.channels: list[grpc.Channel] = []
        self.channel = self.connect() if credentials is None else None

    def connect(self) -> grpc.Channel:
        options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        )
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        self.channels.append(channel)
        return channel

    def stream(self, messages: Any, channel: grpc.Channel | None = None, **call: Any) -> Any:
        call.setdefault("timeout", WAIT_S)
        method: Any = (channel or self.channel).stream_stream("/t/Stream")  # type: ignore[union-attr]
        return method(iter(messages), **call)

    def unary(self, data: bytes, timeout: float = WAIT_S) -> Any:
        assert self.channel is not None
        return self.channel.unary_unary("/t/Unary").future(data, timeout=timeout)

    def handler(self) -> Any:
        return self.opened.get(timeout=WAIT_S)

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        assert self.server.stop(0).wait(WAIT_S)


@pytest.fixture(params=["fast", "threaded"])
def lane(request: pytest.FixtureRequest) -> ServerLane:
    return FastLane() if request.param == "fast" else ThreadedLane()


@pytest.fixture
def rig(lane: ServerLane) -> Iterator[Callable[..., Rig]]:
    """Starts servers on the lane under test, and stops them."""
    rigs: list[Rig] = []

    def start(open_: Callable[[Call], Any] = Echo, **server: Any) -> Rig:
        rigs.append(Rig(lane, open_, **server))
        return rigs[-1]

    yield start
    for started in rigs:
        started.close()


Start = Callable[..., Rig]


def cancelled_once(handler: Echo, lane: ServerLane) -> bool:
    """Whether `on_end` came once, for a cancelled call.

    The client's cancellation can look half-closed first; the public API, which the threaded lane keeps to, does
    not always tell which it was.
    """
    return len(handler.ends) == 1 and (handler.ends[0] or lane.name == "threaded")


def status(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ended; its remaining replies are dropped."""
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        pass
    return call.code(), call.details()


@pytest.mark.parametrize("kind", [Echo, Engine])
def test_replies_come_in_order_to_a_client_that_waits_for_each(rig: Start, kind: Any) -> None:
    feed = Feed()
    call = rig(kind).stream(feed)
    for number in range(200):
        feed.put(b"%d" % number)
        assert next(call) == b"%d" % number
    feed.put(None)
    assert status(call) == (grpc.StatusCode.OK, "")


@pytest.mark.parametrize("kind", [Echo, Engine])
def test_replies_come_in_order_to_a_client_that_sends_all_at_once(rig: Start, kind: Any) -> None:
    sent = [b"%d" % number for number in range(2000)]
    assert list(rig(kind).stream(sent)) == sent


@pytest.mark.parametrize("window", [2, 3, 8])
def test_a_client_may_change_between_waiting_and_pipelining(rig: Start, window: int) -> None:
    feed = Feed()
    call = rig(Engine).stream(feed)
    number = 0
    for size in [1, window] * 30 + [1] * 40 + [window] * 40:
        burst = [b"%d" % (number + i) for i in range(size)]
        number += size
        feed.put(*burst)
        assert [next(call) for _ in burst] == burst
    feed.put(None)
    assert status(call)[0] is grpc.StatusCode.OK


def test_a_pipelining_client_is_read_ahead_of_the_replies(rig: Start) -> None:
    class Holding(Echo):
        def take(self, data: bytes) -> bool:
            return len(self.messages) < 20

    served = rig(Holding)
    sent = [b"%d" % number for number in range(20)]
    call = served.stream(Feed(*sent))
    handler = served.handler()
    handler.got.get(timeout=WAIT_S)
    handler.call.reply(sent[0])  # a client's first message may be answered before the next is read
    for message in sent[1:]:
        assert handler.got.get(timeout=WAIT_S) == message
    for message in sent[1:]:
        handler.call.reply(message)
    assert [next(call) for _ in sent] == sent


def test_the_second_of_two_replies_does_not_wait_for_a_third_message(rig: Start) -> None:
    class Late(Echo):
        def take(self, data: bytes) -> bool:
            if data == b"second":
                thread = threading.Thread(target=self.call.reply, args=(b"first",))
                thread.start()
                thread.join()
                threading.Timer(0.05, self.call.reply, (b"second",)).start()
            elif data != b"first":
                self.call.reply(data)
            return True

    feed = Feed(b"open")
    call = rig(Late).stream(feed)
    assert next(call) == b"open"
    feed.put(b"first", b"second")
    assert (next(call), next(call)) == (b"first", b"second")


def test_nothing_is_read_between_false_and_resume(rig: Start) -> None:
    class Full(Echo):
        def take(self, data: bytes) -> bool:
            self.call.reply(data)
            return False

    served = rig(Full)
    call = served.stream(Feed(b"0", b"1", b"2", None))
    handler = served.handler()
    for number in range(3):
        assert next(call) == b"%d" % number
        for _ in range(20):  # passes through the same connection and the same serving thread
            assert served.unary(b"ab").result() == b"ba"
        assert handler.messages == [b"0", b"1", b"2"][: number + 1]
        assert not handler.half_closed.is_set()
        handler.call.resume()
    assert status(call)[0] is grpc.StatusCode.OK


def test_room_found_before_on_message_returns_counts(rig: Start) -> None:
    class Raced(Echo):
        def take(self, data: bytes) -> bool:
            self.call.reply(data)
            thread = threading.Thread(target=self.call.resume)
            thread.start()
            thread.join()
            return False

    sent = [b"%d" % number for number in range(50)]
    assert list(rig(Raced).stream(sent)) == sent


def test_resume_without_a_pause_changes_nothing(rig: Start) -> None:
    class Eager(Engine):
        def answer_all(self) -> None:
            while (data := self.work.get()) is not None:
                self.call.resume()
                self.call.reply(data)
                self.call.resume()
                with self.lock:
                    self.unfinished -= 1
                    done = self.half_closed.is_set() and not self.unfinished
                if done:
                    self.call.end()

    sent = [b"%d" % number for number in range(500)]
    assert list(rig(Eager).stream(sent)) == sent


def test_a_client_that_does_not_read_its_replies_is_not_read_on(rig: Start) -> None:
    served = rig(Echo)
    big = b"x" * 262_144
    count = 400
    call = served.stream(Feed(*[big] * count, None))
    handler = served.handler()
    received = 0
    try:
        while True:
            handler.got.get(timeout=1.0)
            received += 1
    except queue.Empty:
        pass
    assert received < count
    assert sum(1 for _ in call) == count


class Counting(Echo):
    """Answers `count N` with the numbers below N from a thread of its own, as the client has room; `stop` with none."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.said = self.waits = 0
        self.stopped = threading.Event()

    def take(self, data: bytes) -> bool:
        command, _, number = data.partition(b" ")
        if command == b"count":
            self.call.read_on()
            threading.Thread(target=self.count, args=(int(number),), daemon=True).start()
        elif command == b"stop":
            self.stopped.set()
            self.call.skip()
        else:
            self.call.reply(data)
        return True

    def count(self, below: int) -> None:
        for number in range(below):
            room = threading.Event()
            if not self.call.has_room(room.set):
                self.waits += 1
                assert room.wait(WAIT_S)
            last = number == below - 1 or self.stopped.is_set()
            self.said += 1
            self.call.reply(b"%d" % number * self.size, last=last)
            if last:
                return

    size = 1


def test_a_message_may_have_many_replies_and_a_waiting_client_goes_on_as_before(rig: Start) -> None:
    feed = Feed()
    call = rig(Counting).stream(feed)
    for count in (1, 2, 100, 3):
        feed.put(b"count %d" % count)
        assert [next(call) for _ in range(count)] == [b"%d" % number for number in range(count)]
        for _ in range(40):
            feed.put(b"x")
            assert next(call) == b"x"
    feed.put(None)
    assert status(call) == (grpc.StatusCode.OK, "")


def test_a_message_is_read_while_an_earlier_one_has_its_first_reply_to_come(rig: Start) -> None:
    class Slow(Counting):
        def count(self, below: int) -> None:
            assert self.stopped.wait(WAIT_S)
            super().count(below)

    feed = Feed(b"count 1000")
    call = rig(Slow).stream(feed)
    feed.put(b"stop")
    assert next(call) == b"0"
    for _ in range(40):
        feed.put(b"x")
        assert next(call) == b"x"


def test_a_message_without_a_reply_holds_up_no_other(rig: Start) -> None:
    feed = Feed()
    call = rig(Counting).stream(feed)
    for _ in range(40):
        feed.put(b"stop", b"x")
        assert next(call) == b"x"
    feed.put(b"stop", None)
    assert status(call)[0] is grpc.StatusCode.OK


def test_a_handler_that_replies_unasked_pauses_for_a_client_that_does_not_read(rig: Start) -> None:
    class Big(Counting):
        size = 50_000

    served = rig(Big)
    feed = Feed(b"count 2000")
    call = served.stream(feed)
    handler = served.handler()
    said, same = -1, 0
    while same < 3:  # a busy machine may be slow with one reply
        threading.Event().wait(0.25)
        same = same + 1 if said == handler.said else 0
        said = handler.said
    assert 0 < said < 2000
    assert next(call) == b"0" * Big.size
    feed.put(b"stop")  # is read though replies are waiting
    assert handler.stopped.wait(WAIT_S)
    feed.put(None)
    rest = sum(1 for _ in call)
    # The reply that was read may have made room for as many as wait at most, before the handler was stopped.
    assert said - 1 <= rest <= said + 1 + PAUSE_REPLIES
    assert handler.waits


def test_a_handler_that_waits_for_room_when_the_call_ends_waits_for_nothing(rig: Start) -> None:
    class Big(Counting):
        size = 50_000

        def count(self, below: int) -> None:
            self.woken = threading.Event()
            while self.call.has_room(self.woken.set):
                self.call.reply(b"x" * self.size, last=False)
            self.full = True

    served = rig(Big)
    call = served.stream(Feed(b"count 1"))
    handler = served.handler()
    while not hasattr(handler, "full"):
        threading.Event().wait(0.01)
    call.cancel()
    assert handler.ended.wait(WAIT_S)
    assert handler.call.has_room(handler.woken.set)


def test_half_close_lets_replies_that_are_due_out(rig: Start) -> None:
    served = rig(Engine)
    sent = [b"%d" % number for number in range(100)]
    assert list(served.stream(sent)) == sent
    handler = served.handler()
    assert handler.ended.wait(WAIT_S)
    assert handler.half_closed.is_set()
    assert handler.ends == [False]


def test_a_stream_without_messages_ends_well(rig: Start) -> None:
    served = rig()
    assert list(served.stream([])) == []
    assert served.handler().ended.wait(WAIT_S)


def test_an_error_carries_code_details_and_metadata(rig: Start) -> None:
    call = rig().stream(Feed(b"a", b"fail"))
    assert next(call) == b"a"
    assert status(call) == (grpc.StatusCode.ABORTED, "asked to")
    assert dict(call.trailing_metadata()) == {"why": "test", "why-bin": b"\x00\xff"}


def test_the_end_comes_after_the_replies_given_before_it(rig: Start) -> None:
    served = rig()
    call = served.stream(Feed(b"reply and end"))
    assert next(call) == b"reply and end"
    assert status(call) == (grpc.StatusCode.ABORTED, "after the reply")
    handler = served.handler()
    assert handler.ended.wait(WAIT_S)
    assert handler.ends == [False]


@pytest.mark.parametrize("size", [1, 8_000_000])
def test_a_waiting_stream_can_be_ended_after_its_reply(rig: Start, size: int) -> None:
    # The reply is in one batch with the next read, which never lands. The larger one is still on its way.
    class Idle(Echo):
        def take(self, data: bytes) -> bool:
            self.replied = threading.Thread(target=self.call.reply, args=(data * size,))
            return True

    served = rig(Idle)
    call = served.stream(Feed(b"x"))
    handler = served.handler()
    handler.got.get(timeout=WAIT_S)
    assert served.unary(b"ab").result() == b"ba"  # `on_message` has returned
    handler.replied.start()
    handler.replied.join()
    if size == 1:
        assert next(call) == b"x"
    handler.call.end(grpc.StatusCode.ABORTED, "idle")
    if size > 1:
        assert next(call) == b"x" * size
    assert status(call) == (grpc.StatusCode.ABORTED, "idle")


def test_the_first_end_stands(rig: Start) -> None:
    served = rig()
    call = served.stream(Feed(b"hold"))
    handler = served.handler()
    handler.got.get(timeout=WAIT_S)
    handler.call.end(grpc.StatusCode.ABORTED, "first")
    handler.call.end(grpc.StatusCode.INTERNAL, "second")
    handler.call.reply(b"late")
    assert status(call) == (grpc.StatusCode.ABORTED, "first")
    assert handler.ended.wait(WAIT_S)
    handler.call.reply(b"later")
    handler.call.resume()
    handler.call.end()
    assert handler.ends == [False]


def test_many_ends_at_once_are_one_end(rig: Start) -> None:
    served = rig()
    for _ in range(20):
        call = served.stream(Feed(b"hold"))
        handler = served.handler()
        handler.got.get(timeout=WAIT_S)
        threads = [threading.Thread(target=handler.call.end) for _ in range(8)]
        for thread in threads:
            thread.start()
        call.cancel()
        for thread in threads:
            thread.join()
        assert handler.ended.wait(WAIT_S)
        assert len(handler.ends) == 1


def test_a_fault_of_the_handler_ends_its_call_and_no_other(rig: Start) -> None:
    served = rig()
    feed = Feed(b"a")
    other = served.stream(feed)
    assert next(other) == b"a"
    served.handler()
    call = served.stream(Feed(b"raise"))
    code, details = status(call)
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details
    assert served.handler().ended.wait(WAIT_S)
    feed.put(b"b", None)
    assert list(other) == [b"b"]


@pytest.mark.parametrize("where", ["open", "half_close", "end"])
def test_a_fault_elsewhere_in_the_handler_is_contained(rig: Start, where: str) -> None:
    class Faulty(Echo):
        def __init__(self, call: Call) -> None:
            super().__init__(call)
            if where == "open":
                raise RuntimeError("a secret of the server")

        def on_half_close(self) -> None:
            if where == "half_close":
                raise RuntimeError("a secret of the server")
            super().on_half_close()

        def on_end(self, cancelled: bool) -> None:
            super().on_end(cancelled)
            raise RuntimeError("a secret of the server")

    served = rig(Faulty)
    for _ in range(2):
        code, details = status(served.stream([b"a"]))
        assert code is (grpc.StatusCode.OK if where == "end" else grpc.StatusCode.INTERNAL)
        assert "secret" not in details


def test_a_cancelled_stream_ends_once_and_takes_no_reply(rig: Start, lane: ServerLane) -> None:
    served = rig()
    call = served.stream(Feed(b"hold"))
    handler = served.handler()
    handler.got.get(timeout=WAIT_S)
    call.cancel()
    assert handler.ended.wait(WAIT_S)
    handler.call.reply(b"too late")
    handler.call.end()
    assert cancelled_once(handler, lane)


def test_cancels_while_replies_are_being_sent_end_each_stream_once(rig: Start) -> None:
    served = rig(Engine)
    for _ in range(30):
        call = served.stream([b"x" * 100_000] * 50)
        next(call)
        call.cancel()
    for _ in range(30):
        handler = served.handler()
        assert handler.ended.wait(WAIT_S)
        assert len(handler.ends) == 1
    assert list(served.stream([b"a"])) == [b"a"]


def test_a_deadline_ends_the_stream(rig: Start, lane: ServerLane) -> None:
    served = rig()
    call = served.stream(Feed(b"hold"), timeout=0.3)
    handler = served.handler()
    assert status(call)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert handler.ended.wait(WAIT_S)
    assert cancelled_once(handler, lane)


def test_a_closed_connection_ends_its_streams(rig: Start, lane: ServerLane) -> None:
    served = rig()
    channel = served.connect()
    calls = [served.stream(Feed(b"hold"), channel) for _ in range(10)]
    handlers = [served.handler() for _ in calls]
    channel.close()
    for handler in handlers:
        assert handler.ended.wait(WAIT_S)
        assert cancelled_once(handler, lane)


def test_a_message_over_the_limit_ends_the_stream_once(rig: Start) -> None:
    served = rig(options=(("grpc.max_receive_message_length", 1000),))
    call = served.stream(Feed(b"a", b"x" * 2000))
    assert status(call)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    handler = served.handler()
    assert handler.ended.wait(WAIT_S)
    assert handler.messages == [b"a"]
    assert len(handler.ends) == 1


def test_a_reply_over_the_limit_ends_the_stream(rig: Start) -> None:
    class Growing(Echo):
        def take(self, data: bytes) -> bool:
            self.call.reply(data * 2000)
            return True

    served = rig(Growing, options=(("grpc.max_send_message_length", 1000),))
    code, _ = status(served.stream(Feed(b"a")))
    assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert served.handler().ended.wait(WAIT_S)


def test_garbage_on_the_connection_disturbs_no_stream(rig: Start) -> None:
    served = rig()
    feed = Feed(b"a")
    call = served.stream(feed)
    assert next(call) == b"a"
    for junk in (
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
    ):
        with socket.create_connection(("127.0.0.1", served.port), timeout=WAIT_S) as raw:
            raw.sendall(junk)
    feed.put(b"b", None)
    assert list(call) == [b"b"]


@pytest.mark.parametrize("message", [b"hold", b"a"])
def test_stop_ends_open_streams(rig: Start, message: bytes) -> None:
    served = rig()
    call = served.stream(Feed(message))
    handler = served.handler()
    handler.got.get(timeout=WAIT_S)
    assert served.server.stop(0.2).wait(WAIT_S)
    assert handler.ended.wait(WAIT_S)
    assert len(handler.ends) == 1
    assert status(call)[0] in (CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_stop_lets_streams_finish_within_the_grace(rig: Start) -> None:
    served = rig()
    feed = Feed(b"a")
    call = served.stream(feed)
    assert next(call) == b"a"
    stopped = served.server.stop(WAIT_S)
    feed.put(b"b", None)
    assert list(call) == [b"b"]
    assert stopped.wait(WAIT_S)


def test_nothing_is_kept_of_streams_that_were_dropped(rig: Start) -> None:
    served = rig()
    kept: list[weakref.ref[Any]] = []
    for number in range(1000):
        feed = Feed(b"a")
        call = served.stream(feed)
        assert next(call) == b"a"
        handler = served.handler()
        kept.append(weakref.ref(handler))
        if number % 2:
            call.cancel()
        else:
            feed.put(None)
            status(call)
        assert handler.ended.wait(WAIT_S)
        feed.put(None)
        del handler, call, feed
    assert served.server.stop(0).wait(WAIT_S)
    gc.collect()
    # A loop variable somewhere may still hold the last one.
    assert sum(ref() is not None for ref in kept) <= 1
    assert sum(type(thing).__name__ == "StreamCall" for thing in gc.get_objects()) <= 1


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
    pending = served.unary(b"a", timeout=WAIT_S if how == "cancel" else 0.3)
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
