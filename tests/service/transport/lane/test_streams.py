"""Both lanes, held to one behaviour: order, reading ahead and back-pressure of streams."""

from __future__ import annotations

import queue
import threading
from typing import Any

import grpc
import pytest

from streamcell.service.transport.calls import Call
from streamcell.service.transport.read_pacing import PAUSE_REPLIES
from tests.support.lanes import WAIT_S, Echo, Engine, Feed, Start, status


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
    while same < 6:  # a busy machine may be slow with one reply
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
