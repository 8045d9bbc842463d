"""A real Prometheus scrapes the server and answers PromQL; promtool finds nothing to object to in the names."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from streamcell.proto import pb, rpc
from tests.support.waiting import waited

SESSIONS, STEPS = 3, 50


@pytest.fixture(scope="module")
def worked(start_server: Any, models_dir: Path) -> Any:
    """A server that has run SESSIONS sessions of STEPS steps, and refused one."""
    server = start_server(models_dir)
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        open_ = pb.StreamRequest(open=pb.OpenSession(model="lstm"))
        for _ in range(SESSIONS):
            list(stub.Stream(iter([open_, *[pb.StreamRequest(inputs=[bytes(12)])] * STEPS])))
        with pytest.raises(grpc.RpcError):
            list(stub.Stream(iter([pb.StreamRequest(open=pb.OpenSession(model="none"))])))
    return server


def test_promtool_accepts_the_metrics(worked: Any, program: Callable[[str], str]) -> None:
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=worked.metrics(), capture_output=True, text=True
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("streamcell")]
    assert ours == []
    assert done.returncode in (0, 3), done.stderr  # 3: a complaint about a name, none of them ours


@pytest.mark.conformance
def test_the_figures_are_those_of_the_work_done(worked: Any) -> None:
    assert waited(
        lambda: worked.metric("streamcell_steps_total", model="lstm", version="1") == SESSIONS * STEPS
    )
    assert waited(
        lambda: worked.metric("streamcell_step_latency_seconds_count", model="lstm") == SESSIONS * STEPS
    )
    assert waited(lambda: worked.metric("streamcell_sessions_opened_total", model="lstm") == SESSIONS)
    assert waited(
        lambda: worked.metric("streamcell_sessions_ended_total", model="lstm", reason="closed") == SESSIONS
    )
    assert waited(
        lambda: worked.metric("streamcell_errors_total", code="NOT_FOUND", reason="MODEL_NOT_FOUND") == 1
    )
    assert worked.metric("streamcell_slots", model="lstm") == 10_000
    assert worked.metric("streamcell_ready") == 1


def query(address: str, promql: str) -> list[Any]:
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': promql})}"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            result: list[Any] = json.load(answer)["data"]["result"]
    except OSError:  # not listening yet
        return []
    return result


def test_prometheus_scrapes_and_answers(prometheus: str, eventually: Any) -> None:
    promql = 'sum(streamcell_steps_total{model="lstm"})'

    def answers(promql: str) -> list[float]:
        return [float(found["value"][1]) for found in query(prometheus, promql)]

    # A scrape that a busy machine holds up fails, and the next one does not.
    assert eventually(lambda: answers(promql) == [SESSIONS * STEPS])
    assert eventually(lambda: answers('up{job="streamcell"}') == [1])
    quantile = "histogram_quantile(0.99, sum by (le) (streamcell_step_latency_seconds_bucket))"
    assert eventually(lambda: [0 < found <= 5 for found in answers(quantile)] == [True])
