"""A collector gets the spans of traced messages and all metrics; a scrape in OpenMetrics shows whose latency it was."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from streamcell.client import connect
from streamcell.proto.inference import rpc as oip_rpc
from tests.support.callers import channel_with
from tests.support.collector import Collector
from tests.support.infer_requests import request as infer
from tests.support.onnx_files import parsed, save

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OTHER = "1af7651916cd43dd8448eb211c80319c"  # of calls of other kinds
GRAPH = (
    "(float[n,2] x, float[n,2] h) => (float[n,2] y, float[n,2] h_next) { y = Neg(x) h_next = Identity(h) }"
)
STEPS = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(parsed(GRAPH), folder / "one.onnx")
    return folder


@pytest.fixture(scope="module")
def collected(models: Path, start_server: Any) -> Iterator[tuple[Collector, str, str]]:
    """What a collector has of a server that has stopped, and its pages before: as text and as OpenMetrics."""
    with Collector() as collector:
        server = start_server(models, "--otlp-endpoint", collector.endpoint)
        for flag in ("01", "00"):
            metadata = (("traceparent", f"00-{TRACE}-{SPAN}-{flag}"), ("tracestate", "vendor=1"))
            with connect(server.target, metadata=metadata) as client, client.session("one") as session:
                for _ in range(STEPS):
                    session.step(np.zeros(2, np.float32))
        with connect(server.target) as client, client.session("one") as session:
            session.step(np.zeros(2, np.float32))
        _call_otherwise(server.target)
        page = server.metrics()
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        with urllib.request.urlopen(urllib.request.Request(server.metrics_url, headers=accept)) as answer:
            openmetrics = answer.read().decode()
        assert server.stop() == 0
        yield collector, page, openmetrics
        assert collector.wrong == []


def _call_otherwise(target: str) -> None:
    metadata = (("traceparent", f"00-{OTHER}-{SPAN}-01"),)
    x = np.zeros((1, 2), np.float32)
    with connect(target, metadata=metadata) as client:
        client.predict("one", x)
        with client.session("one", resume=True) as session:
            for _ in range(STEPS):
                session.step(x[0])
    with channel_with(target, metadata) as channel:
        stub: Any = oip_rpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(infer(x, "one"))
        flags = [{"sequence_start": True}, {}, {"sequence_end": True}]
        asked = [infer(x, "one", sequence_id=1, **each) for each in flags]
        assert not any(reply.error_message for reply in stub.ModelStreamInfer(iter(asked)))


@pytest.mark.conformance
def test_calls_of_every_kind_that_runs_a_model_have_spans(collected: tuple[Collector, str, str]) -> None:
    collector, _, _ = collected
    found = Counter(
        span.name.removeprefix("streamcell.").removesuffix("/message")
        for span in collector.spans
        if span.trace_id.hex() == OTHER
    )
    # A client of a resumable session also says what it has received; that has no answer.
    assert found == {"Predict": 1, "Stream": STEPS + 1, "ModelInfer": 1, "ModelStreamInfer": 3}


@pytest.mark.conformance
def test_sampled_messages_have_spans_below_the_client_s(collected: tuple[Collector, str, str]) -> None:
    collector, _, _ = collected
    spans = [
        span
        for span in collector.spans
        if span.name == "streamcell.Stream/message" and span.trace_id.hex() != OTHER
    ]
    assert len(spans) == STEPS + 1  # of the sampled call alone: the opening and the steps
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in spans} == {(TRACE, SPAN)}
    assert {span.trace_state for span in spans} == {"vendor=1"}
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano > 1.6e18 for span in spans)
    assert collector.services == {"streamcell"}


def test_each_batch_is_linked_to_its_messages(collected: tuple[Collector, str, str]) -> None:
    collector, _, _ = collected
    messages = {span.span_id for span in collector.spans if span.name.endswith("/message")}
    batches = [span for span in collector.spans if span.name == "streamcell.batch"]
    links = [link.span_id for span in batches for link in span.links]
    assert len(links) == len(set(links)) == 2 * STEPS + 5  # an opening runs in no batch
    assert set(links) < messages
    attributes = {each.key: each.value for each in batches[0].attributes}
    assert attributes["streamcell.model"].string_value == "one"
    assert attributes["streamcell.rows"].int_value == 1


@pytest.mark.conformance
def test_the_collector_has_the_metrics_that_a_scrape_has(collected: tuple[Collector, str, str]) -> None:
    collector, page, _ = collected
    names = set(re.findall(r"^# TYPE (streamcell_\w+)", page, re.MULTILINE))
    assert {name.removesuffix("_total").removesuffix("_info") for name in names} <= {*collector.metrics}
    steps = collector.metrics["streamcell_steps"]
    assert steps.sum.is_monotonic
    assert [point.as_double for point in steps.sum.data_points] == [3 * STEPS + 6]
    latency = collector.metrics["streamcell_step_latency_seconds"]
    (point,) = latency.histogram.data_points
    assert (point.count, sum(point.bucket_counts)) == (3 * STEPS + 6, 3 * STEPS + 6)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert not point.HasField("min")
    assert latency.unit == "s"
    assert {each.key for each in point.attributes} == {"model", "version"}


def test_a_scrape_in_openmetrics_shows_whose_latency_a_bucket_counts(
    collected: tuple[Collector, str, str],
) -> None:
    _, page, openmetrics = collected
    found = [
        sample.exemplar
        for family in text_string_to_metric_families(openmetrics)
        if family.name == "streamcell_step_latency_seconds"
        for sample in family.samples
        if sample.exemplar
    ]
    assert found
    assert {each.labels["trace_id"] for each in found} <= {TRACE, OTHER}
    assert TRACE not in page  # the older format has no exemplars


def test_a_collector_that_is_away_disturbs_nobody(models: Path, start_server: Any) -> None:
    server = start_server(
        models, "--otlp-endpoint", "http://127.0.0.1:9", "--trace-ratio", "1", "--otlp-metrics-s", "0.05"
    )
    with connect(server.target) as client, client.session("one") as session:
        for _ in range(50):
            session.step(np.zeros(2, np.float32))
    assert server.stop() == 0
    assert not [line for line in server.log if line.get("level") == "critical"]
