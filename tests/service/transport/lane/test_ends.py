"""Both lanes, held to one behaviour: how streams end, whoever ends them."""

from __future__ import annotations

import gc
import socket
import threading
import weakref
from typing import Any

import grpc
import pytest

from streamcell.service.transport.calls import Call, ServerLane
from tests.support.lanes import CANCELLED, WAIT_S, Echo, Engine, Feed, Start, status


def cancelled_once(handler: Echo, lane: ServerLane) -> bool:
    """Whether `on_end` came once, for a cancelled call.

    The client's cancellation can look half-closed first; the public API, which the threaded lane keeps to, does
    not always tell which it was.
    """
    return len(handler.ends) == 1 and (handler.ends[0] or lane.name == "threaded")


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
            return True

    served = rig(Idle)
    call = served.stream(Feed(b"x"))
    handler = served.handler()
    handler.got.get(timeout=WAIT_S)
    assert served.unary(b"ab").result() == b"ba"  # in the fast lane `on_message` has returned
    replies = threading.Thread(target=handler.call.reply, args=(b"x" * size,))
    replies.start()
    replies.join()
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
    call = served.stream(Feed(b"hold"), timeout=4)
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
    before = calls_in_memory()
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
    # A loop variable somewhere may still hold the last one, and others' servers may have calls.
    assert calls_in_memory() <= before + 1
    assert sum(ref() is not None for ref in kept) <= 1


def calls_in_memory() -> int:
    gc.collect()
    return sum(type(thing).__name__ == "StreamCall" for thing in gc.get_objects())
