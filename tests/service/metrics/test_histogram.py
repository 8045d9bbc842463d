"""The batch histogram counts as Prometheus defines buckets, one value at a time or many."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcell.service.metrics.histogram import LATENCY_BUCKETS_S, Histogram


@given(st.lists(st.floats(0, 10) | st.sampled_from(LATENCY_BUCKETS_S), max_size=60))
def test_counts_are_cumulative_and_inclusive_whatever_the_batch(values: list[float]) -> None:
    histogram = Histogram(LATENCY_BUCKETS_S)
    histogram.observe(values)
    buckets, total = histogram.snapshot()
    for bound, count in buckets[:-1]:
        assert count == sum(value <= float(bound) for value in values)
    assert buckets[-1] == ("+Inf", len(values))
    assert total == pytest.approx(sum(values))


def test_no_value_is_lost_or_counted_twice_while_threads_observe_and_others_look() -> None:
    histogram = Histogram(LATENCY_BUCKETS_S)
    start = threading.Barrier(5)

    def observe() -> None:
        start.wait()
        for _ in range(400):
            histogram.observe([0.001] * 30)
            histogram.observe_one(2.0)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        count, _ = histogram.totals()
        assert count >= seen
        seen = count
    for thread in threads:
        thread.join()
    buckets, total = histogram.snapshot()
    assert dict(buckets)["0.001"] == 4 * 400 * 30
    assert dict(buckets)["+Inf"] == 4 * 400 * 31
    assert total == pytest.approx(4 * 400 * (0.03 + 2.0))


def test_what_waits_to_be_counted_is_bounded_though_nobody_looks() -> None:
    histogram = Histogram(LATENCY_BUCKETS_S)
    for _ in range(3000):
        histogram.observe([0.001] * 7)
        assert len(histogram._kept) < 2048
