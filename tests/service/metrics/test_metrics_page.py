"""One page for all who ask at the same time, never older than their request, made in slices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from streamcell.service.metrics import page as metrics_page
from streamcell.service.metrics.histogram import LATENCY_BUCKETS_S, Histogram
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.page import Pages, Snapshot
from streamcell.service.metrics.request_metrics import RunTally
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.metrics.triton_metrics import TritonMetrics


class Counting(Collector):
    """Counts how often it is collected; may be held up."""

    def __init__(self) -> None:
        self.times = 0
        self.at_once = 0
        self.most_at_once = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: Exception | None = None
        self.work: Callable[[], None] = lambda: None

    def collect(self) -> Iterable[Metric]:
        self.times += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.entered.set()
        self.go_on.wait(60)
        self.work()
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        yield GaugeMetricFamily("times", "How often.", value=self.times)


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def pages(counting: Counting) -> Pages:
    registry = CollectorRegistry()
    registry.register(counting)
    return Pages(registry)


def ask_all(pages: Pages, number: int) -> list[bytes]:
    """The pages that as many get who ask at once."""
    answers: list[bytes] = []

    def ask() -> None:
        answers.append(pages.page(time.monotonic(), "", (), False)[1])

    threads = [threading.Thread(target=ask) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_all_who_ask_while_a_page_is_made_share_the_next(pages: Pages, counting: Counting) -> None:
    counting.go_on.clear()
    first = threading.Thread(target=ask_all, args=(pages, 1))
    first.start()
    assert counting.entered.wait(60)
    others: list[bytes] = []
    threads = [threading.Thread(target=lambda: others.extend(ask_all(pages, 16)))]
    for thread in threads:
        thread.start()
    while pages._turn._waiters is None or len(pages._turn._waiters) < 16:  # type: ignore[attr-defined]
        time.sleep(0.001)
    counting.go_on.set()
    for thread in (first, *threads):
        thread.join()
    assert counting.most_at_once == 1
    assert counting.times == 2
    assert others == [b"# HELP times How often.\n# TYPE times gauge\ntimes 2.0\n"] * 16


def test_a_page_is_never_older_than_the_request(pages: Pages, counting: Counting) -> None:
    for times in range(1, 4):
        (page,) = ask_all(pages, 1)
        assert page.endswith(b"times %d.0\n" % times)
    asked_s = time.monotonic()
    ask_all(pages, 1)
    assert pages.page(asked_s, "", (), False)[1].endswith(b"times 4.0\n")
    assert counting.times == 4


def test_between_two_pages_there_is_a_pause(
    pages: Pages, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, slept_s = 1_000.0, 0.0

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now_s

        @staticmethod
        def sleep(seconds: float) -> None:
            nonlocal now_s, slept_s
            now_s += seconds
            slept_s += seconds

        perf_counter = staticmethod(time.perf_counter)

    def work() -> None:
        nonlocal now_s
        now_s += 0.02

    monkeypatch.setattr(metrics_page, "time", Time)
    counting.work = work
    began_s = now_s
    for _ in range(100):
        pages.page(now_s + 1, "", (), False)
    assert counting.times == 100
    assert slept_s > 0.89 * (now_s - began_s)


def test_a_failure_is_told_to_who_asked_and_the_next_is_tried_anew(pages: Pages, counting: Counting) -> None:
    counting.error = ValueError("no figures")
    for _ in range(2):
        with pytest.raises(ValueError, match="no figures"):
            pages.page(time.monotonic(), "", (), False)
    counting.error = None
    assert pages.page(time.monotonic(), "", (), False)[1].endswith(b"times 3.0\n")


def test_the_sliced_page_is_the_one_that_prometheus_client_makes() -> None:
    metrics = ServerMetrics()
    for i in range(30):
        model = ModelMetrics(f'model "{i}"\n', "1")
        run = RunTally(0.0, 0.001, 0.002)
        run.steps, run.chunks, run.waits_s, run.latencies_s = 5, 1, [0.001], [0.002]
        model.delivered(run, 1, 0.003)
        model.session_ended("closed")
        metrics.add(model)
    registry = CollectorRegistry()
    registry.register(metrics)
    registry.register(TritonMetrics(metrics))
    snapshot = Snapshot(registry.collect(), 0.0)
    for accept, whole in (
        ("", generate_latest(registry)),
        ("application/openmetrics-text", openmetrics.generate_latest(registry)),
    ):
        assert snapshot.page(accept, (), False)[1] == whole
        names = ("streamcell_steps_total", "streamcell_step_latency_seconds_bucket", "nv_inference_count")
        page = snapshot.page(accept, names, False)[1]
        samples = [line for line in page.splitlines() if not line.startswith(b"#")]
        assert samples
        assert set(samples) == {
            line for line in whole.splitlines() if line.partition(b"{")[0].decode() in names
        }


def test_no_slice_is_long() -> None:
    histogram = Histogram(LATENCY_BUCKETS_S)
    assert len(histogram.snapshot()[0]) < metrics_page._SLICE_SAMPLES
    family = CounterMetricFamily("many", "Many.", labels=("i",))
    for i in range(1_050):
        family.add_metric([str(i)], i)
    parts = [part for part, _ in metrics_page._parts(family)]
    assert [len(part.samples) for part in parts] == [100] * 10 + [50]


def test_kinds_of_pages_that_are_kept_are_few() -> None:
    snapshot = Snapshot([GaugeMetricFamily("x", "X.", value=1)], 0.0)
    for i in range(200):
        for accept in (f"application/openmetrics-text; version={i}.7", f"text/plain; version=1.0.{i}"):
            for zipped in (False, True):
                snapshot.page(accept, (), zipped)
    assert len(snapshot._pages) <= 10
