"""A rate is held on average, on a fake clock: nothing is lost, nobody waits longer than he must."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest

from streamcell.service.access.access_errors import QuotaExceeded
from streamcell.service.access.grant import Grant
from streamcell.service.access.pacing import Later, Pace, Rate
from streamcell.service.access.policy import Terms


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class ByHand(Later):
    """Calls when the test says so."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._thread = object()  # type: ignore[assignment]  # none is started


def test_a_tenant_that_was_idle_may_send_a_seconds_worth_at_once_and_then_the_rate() -> None:
    clock = Clock()
    rate = Rate(clock)
    assert [rate.spend(1, 10.0) for _ in range(10)] == pytest.approx([0.0] * 10)
    assert rate.spend(1, 10.0) == pytest.approx(0.1)
    clock.now_s += 0.1
    assert rate.due() == pytest.approx(0.0)
    assert rate.spend(5, 10.0) == pytest.approx(0.5)
    clock.now_s += 1000.0
    assert rate.spend(10, 10.0) == pytest.approx(0.0)
    assert rate.spend(1, 10.0) == pytest.approx(0.1)


@pytest.mark.parametrize("streams", [1, 7])
def test_streams_of_one_tenant_share_its_rate_however_many_they_are(streams: int) -> None:
    clock = Clock()
    later = ByHand(clock)
    rate = Rate(clock)
    sent = 0
    reading: list[bool] = [True] * streams

    def resuming(at: int) -> Callable[[], None]:
        def resume() -> None:
            reading[at] = True

        return resume

    paces = [Pace(lambda steps: rate.spend(steps, 100.0), resuming(at), later) for at in range(streams)]
    for _ in range(2000):  # 20 s
        for at, pace in enumerate(paces):
            while reading[at]:
                sent += 1
                reading[at] = pace.after(1, room=True)
        clock.now_s += 0.01
        later.run_due()
    assert sent == pytest.approx(100 * 20 + 100, abs=2 * streams)


def test_a_stream_without_room_is_not_read_before_its_wait_is_over() -> None:
    clock = Clock()
    later = ByHand(clock)
    resumed: list[float] = []
    rate = Rate(clock)
    pace = Pace(lambda steps: rate.spend(steps, 1.0), lambda: resumed.append(clock.now_s), later)
    assert pace.after(1, room=True)
    assert not pace.after(1, room=False)
    assert not pace.may_resume()
    assert later.run_due() == pytest.approx(1.0)
    assert not resumed
    clock.now_s += 1.0
    assert later.run_due() is None
    assert resumed == [101.0]
    assert pace.may_resume()


class Stream:
    """One of a tenant's streams that may send a timestep a second."""

    def __init__(self, rate: Rate, later: Later) -> None:
        self.resumed = 0
        self.pace = Pace(lambda steps: rate.spend(steps, 1.0), self.resume, later)

    def resume(self) -> None:
        self.resumed += 1


def test_nothing_is_kept_of_a_stream_that_ended_while_it_waited() -> None:
    clock = Clock()
    later = ByHand(clock)
    rate = Rate(clock)
    ended = []
    for _ in range(50):  # each owes more than the last one
        stream = Stream(rate, later)
        assert not stream.pace.after(1000, room=True)
        stream.pace.end()
        ended.append(weakref.ref(stream))
        clock.now_s += 1.0
        later.run_due()
    del stream
    gc.collect()
    assert not any(each() for each in ended)


def test_a_long_wait_is_over_when_it_is_due() -> None:
    clock = Clock()
    later = ByHand(clock)
    stream = Stream(Rate(clock), later)
    assert not stream.pace.after(1000, room=True)
    while not stream.resumed:
        assert clock.now_s < 1100.0
        clock.now_s += later.run_due() or 0.0
    assert clock.now_s == pytest.approx(1099.0)
    assert later.run_due() is None


def test_one_bad_call_does_not_stop_the_others() -> None:
    clock = Clock()
    later = ByHand(clock)
    done: list[int] = []
    later.call(1.0, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    later.call(1.0, lambda: done.append(1))
    clock.now_s += 2
    assert later.run_due() is None
    assert done == [1]


def test_requests_are_refused_while_the_tenant_owes_and_told_when_to_come_again() -> None:
    clock = Clock()
    terms = [Terms(steps_per_s=10.0)]
    grant = Grant("acme", lambda: terms[0], clock)
    grant.spend(15)
    with pytest.raises(QuotaExceeded) as raised:
        grant.expect_room()
    (wait,) = raised.value.more
    assert wait.retry_delay.ToTimedelta().total_seconds() == pytest.approx(0.5)  # type: ignore[attr-defined]
    clock.now_s += 0.5
    grant.expect_room()
    terms[0] = Terms()
    assert grant.spend(10**9) == 0.0
