"""The batch histogram counts as Prometheus defines buckets, one value at a time or many."""

from __future__ import annotations

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
