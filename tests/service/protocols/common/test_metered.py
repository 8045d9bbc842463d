"""A tenant's unanswered bytes: what is read, what waits, and that everything is given back, however it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamcell.service.access.access_errors import QuotaExceeded
from streamcell.service.access.grant import Grant
from streamcell.service.access.identity import ANYONE
from streamcell.service.access.policy import Terms
from streamcell.service.protocols.common.metered import metered, metered_once


class Call:
    """A stream that counts how often it is to be read again; its handler has room unless the test says otherwise."""

    peer, caller, gone, again = "peer", ANYONE, "cancelled", False

    def __init__(self) -> None:
        self.resumed = self.skipped = 0
        self.room = True
        self.inner: Any = None
        self.on: Callable[[], None] = lambda: None

    def resume(self) -> None:
        self.resumed += 1

    def reply(self, data: bytes, *, last: bool = True) -> None: ...

    def skip(self) -> None:
        self.skipped += 1

    def read_on(self) -> None: ...

    def on_half_close(self) -> None: ...

    def on_end(self, cancelled: bool) -> None: ...

    def on_message(self, data: bytes) -> bool:
        self.on()
        return self.room

    # A unary call's

    def metadata(self) -> Any:
        return ()

    answer = reply

    def fail(self, *status: Any) -> None: ...

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self.cancel = callback

    def run_after_arrivals(self, callback: Any) -> bool:
        return False


def opened(grant: Grant) -> tuple[Call, Any]:
    """A stream of the tenant, and its handler as the lane has it."""
    call = Call()

    def make(inner: Any) -> Any:
        call.inner = inner
        return call

    return call, metered(call, grant, make)  # type: ignore[arg-type]


@pytest.fixture
def grant() -> Grant:
    return Grant("acme", lambda: Terms(max_bytes_in_flight=100))


def test_streams_are_not_read_while_their_tenant_has_too_much_unanswered(grant: Grant) -> None:
    (one, first), (two, second) = opened(grant), opened(grant)
    assert first.on_message(bytes(60))
    assert not second.on_message(bytes(60))
    assert not first.on_message(bytes(10))  # it was being read
    assert not grant.idle
    two.inner.reply(b"", last=False)
    assert (one.resumed, two.resumed) == (0, 0)
    one.inner.reply(b"")
    assert (one.resumed, two.resumed) == (1, 1)
    assert grant.in_flight.bytes == 70
    assert first.on_message(bytes(20))
    for call in (one, one, two):
        call.inner.reply(b"")
    assert grant.in_flight.bytes == 0
    assert grant.idle


def test_a_message_over_the_bound_is_taken_and_nothing_beside_it(grant: Grant) -> None:
    (big, first), (_, second) = opened(grant), opened(grant)
    assert not first.on_message(bytes(1000))
    assert not second.on_message(b"x")
    big.inner.reply(b"")
    assert big.resumed == 1
    assert second.on_message(b"x")


def test_a_reply_at_once_lets_the_stream_be_read_on(grant: Grant) -> None:
    call, handler = opened(grant)
    call.on = lambda: call.inner.reply(b"")
    assert handler.on_message(bytes(1000))
    assert grant.in_flight.bytes == 0


def test_a_stream_is_read_only_if_its_handler_has_room_too(grant: Grant) -> None:
    call, handler = opened(grant)
    call.room = False
    assert not handler.on_message(bytes(200))
    call.inner.reply(b"")
    assert call.resumed == 0  # the handler has none yet
    call.inner.resume()
    assert call.resumed == 1
    assert not handler.on_message(bytes(200))
    call.inner.resume()
    assert call.resumed == 1  # now it has, and the meter has none
    call.inner.reply(b"")
    assert call.resumed == 2


def test_a_call_that_ends_gives_everything_back_and_wakes_the_others(grant: Grant) -> None:
    (ending, first), (other, second) = opened(grant), opened(grant)
    first.on_message(bytes(80))
    assert not second.on_message(bytes(30))
    first.on_end(True)
    assert (other.resumed, ending.resumed) == (1, 0)
    ending.inner.reply(b"")  # too late
    second.on_end(False)
    assert grant.in_flight.bytes == 0


def test_calls_that_have_ended_leave_nothing_though_the_tenant_stays_full(grant: Grant) -> None:
    _, full = opened(grant)
    full.on_message(bytes(200))
    before = len(grant.in_flight._waiting)
    for _ in range(50):
        call, handler = opened(grant)
        assert not handler.on_message(b"x")
        handler.on_end(True)
        handler.on_message(b"late")
        assert call.resumed == 0
    assert len(grant.in_flight._waiting) == before
    assert grant.in_flight.bytes == 200


def test_a_message_without_a_reply_counts_no_more(grant: Grant) -> None:
    call, handler = opened(grant)
    assert handler.on_message(bytes(50))
    call.on = call.inner.skip
    assert handler.on_message(bytes(200))
    assert (grant.in_flight.bytes, call.skipped) == (50, 1)


def test_a_stream_whose_generation_may_wait_for_a_later_message_is_read_on(grant: Grant) -> None:
    call, handler = opened(grant)
    call.on = call.inner.read_on
    assert handler.on_message(bytes(10))
    call.on = lambda: None
    assert handler.on_message(bytes(200))
    call.on = call.inner.skip
    assert handler.on_message(b"the client has the replies")
    for _ in range(2):
        call.inner.reply(b"")
    call.on = lambda: None
    assert not handler.on_message(bytes(200))  # the generation is over


def test_without_a_bound_calls_are_the_lanes_own() -> None:
    for grant in (None, Grant("acme")):
        call = Call()
        assert metered(call, grant, lambda inner: inner) is call  # type: ignore[arg-type,return-value]
        given: list[Any] = []
        metered_once(call, b"", grant, given.append)  # type: ignore[arg-type]
        assert given == [call]


def test_a_request_that_does_not_fit_is_refused_and_told_when_to_come_again(grant: Grant) -> None:
    call, given = Call(), []
    metered_once(call, bytes(1000), grant, given.append)  # type: ignore[arg-type]
    with pytest.raises(
        QuotaExceeded, match="may have 100 bytes of unanswered messages and has 1000"
    ) as raised:
        metered_once(Call(), bytes(1), grant, given.append)  # type: ignore[arg-type]
    assert raised.value.facts["quota"] == "max_bytes_in_flight"
    (wait,) = raised.value.more
    assert wait.retry_delay.ToMilliseconds() == 100  # type: ignore[attr-defined]
    given[0].answer(b"")
    given[0].fail("again", "")
    assert grant.in_flight.bytes == 0


@pytest.mark.parametrize("how", ["fail", "cancel", "bug"])
def test_a_request_is_given_back_however_it_ends(grant: Grant, how: str) -> None:
    call, cancelled = Call(), []

    def answer(inner: Any) -> None:
        if how == "bug":
            raise RuntimeError(how)
        inner.on_cancel(lambda: cancelled.append(1))
        if how == "fail":
            inner.fail("code", "text")
        else:
            call.cancel()

    if how == "bug":
        with pytest.raises(RuntimeError):
            metered_once(call, bytes(10), grant, answer)  # type: ignore[arg-type]
    else:
        metered_once(call, bytes(10), grant, answer)  # type: ignore[arg-type]
    assert grant.in_flight.bytes == 0
    assert len(cancelled) == (how == "cancel")
