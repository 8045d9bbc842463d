"""`--triton-metrics`: Triton's names, types, labels and units, over the work that was done, for a real Prometheus."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from streamcell.client import StreamCellError, connect
from streamcell.proto import pb, rpc
from tests.support.waiting import waited

SESSIONS, STEPS, ROWS, CALLS = 3, 20, 5, 4
COUNTERS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    *(
        f"nv_inference_{name}_duration_us"
        for name in ("request", "queue", "compute_input", "compute_infer", "compute_output")
    ),
}
PENDING = "nv_inference_pending_request_count"


@pytest.fixture(scope="module")
def worked(start_server: Any, models_dir: Path) -> Any:
    """A server that has run streams, unary calls, frames and messages that were refused."""
    server = start_server(models_dir, "--triton-metrics", "--max-sessions", "8")
    x = np.ones((ROWS, STEPS, 3), np.float32)
    with connect(server.target) as client:
        for _ in range(SESSIONS):
            with client.session("lstm") as session:
                for _ in range(STEPS):
                    session.step(x[0, 0])
        for _ in range(CALLS):
            client.predict("gru", x)
        with client.pool("rnn", ROWS) as pool:
            for _ in range(STEPS):
                pool.step(x[:, 0])
        with pytest.raises(StreamCellError), client.session("mlp") as session:
            session.step(np.full(3, np.nan, np.float32))
        with pytest.raises(StreamCellError):
            client.predict("mlp", np.full((1, 1, 3), np.inf, np.float32))
        with pytest.raises(StreamCellError):
            client.predict("gru", np.ones((9, 1, 3), np.float32))  # nine slots of eight
    with grpc.insecure_channel(server.target) as channel:
        call = rpc.StreamCellStub(channel).Stream(
            iter([pb.StreamRequest(open=pb.OpenSession(model="mlp"), inputs=[b"odd"])])
        )
        with pytest.raises(grpc.RpcError):
            list(call)
    return server


def metric(server: Any, name: str, **labels: str) -> float:
    """The sum over the samples of `name` with those labels, as the text has it.

    prometheus_client's own parser would add `_total` to a counter's name.
    """
    total = 0.0
    for line in server.metrics().splitlines():
        found, _, rest = line.partition("{")
        pairs, _, value = rest.partition("} ")
        if found == name and {f'{key}="{value}"' for key, value in labels.items()} <= set(pairs.split(",")):
            total += float(value)
    return total


def stands(server: Any, wanted: float, name: str, **labels: str) -> Callable[[], bool]:
    """Whether a figure is at `wanted`. Replies leave before they are counted."""
    return lambda: metric(server, name, **labels) == wanted


def test_requests_are_counted_not_their_rows_and_inferences_are(worked: Any, eventually: Any) -> None:
    for model, requests, inferences in (
        ("lstm", SESSIONS * STEPS, SESSIONS * STEPS),
        ("gru", CALLS, CALLS * ROWS),
        # The pool opens and closes its members by frames without rows.
        ("rnn", metric(worked, "nv_inference_request_success", model="rnn"), STEPS * ROWS),
    ):
        assert eventually(stands(worked, requests, "nv_inference_request_success", model=model, version="1"))
        assert eventually(stands(worked, inferences, "nv_inference_count", model=model, version="1"))
    assert STEPS <= metric(worked, "nv_inference_request_success", model="rnn") <= STEPS + 2
    assert metric(worked, "nv_inference_exec_count", model="lstm") == SESSIONS * STEPS
    assert CALLS <= metric(worked, "nv_inference_exec_count", model="gru") <= CALLS * ROWS
    assert metric(worked, PENDING, model="lstm") == 0


def test_failures_have_triton_s_reasons(worked: Any, eventually: Any) -> None:
    name = "nv_inference_request_failure"
    assert eventually(stands(worked, 3, name, model="mlp", reason="OTHER"))
    assert waited(lambda: metric(worked, name, model="gru", reason="REJECTED") == 1)
    assert metric(worked, name, model="lstm") == 0
    reasons = {
        line.partition('reason="')[2].partition('"')[0]
        for line in worked.metrics().splitlines()
        if line.startswith(name + "{")
    }
    assert reasons == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}


def test_durations_are_microseconds_and_add_up(worked: Any) -> None:
    spent = {
        name: metric(worked, f"nv_inference_{name}_duration_us", model="lstm")
        for name in ("request", "queue", "compute_input", "compute_infer", "compute_output")
    }
    seconds = worked.metric("streamcell_step_latency_seconds_sum", model="lstm")
    assert spent["request"] == pytest.approx(seconds * 1e6, rel=1e-3)
    # Each is rounded down, so the parts make the whole but for a microsecond each.
    request = spent.pop("request")
    assert request - 4 <= sum(spent.values()) <= request
    assert min(spent.values()) > 0


def test_types_and_labels_are_triton_s(worked: Any) -> None:
    lines = worked.metrics().splitlines()
    types = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE nv_")}
    assert types == {**dict.fromkeys(COUNTERS, "counter"), PENDING: "gauge"}
    assert 'nv_inference_count{model="gru",version="1"}' in worked.metrics()


def test_they_are_off_by_default(served: Any) -> None:
    assert "nv_" not in served.metrics()


def test_promtool_objects_to_nothing_but_the_names_that_triton_chose(
    worked: Any, program: Callable[[str], str]
) -> None:
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=worked.metrics(), capture_output=True, text=True
    )
    assert done.returncode in (0, 3), done.stderr
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("nv_")]
    chosen = (
        'counter metrics should have "_total" suffix',
        "should not contain abbreviated units",
        '"_count" suffix',
    )
    assert [line for line in complaints if not any(text in line for text in chosen)] == []


def ask(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]
    except OSError:  # not listening yet
        return None


def test_prometheus_answers_a_dashboard_s_queries(prometheus: str, eventually: Any) -> None:
    def query(promql: str) -> Any:
        data = ask(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': promql})}")
        return data["result"] if data else None

    success = 'nv_inference_request_success{model="lstm"}'

    def answers(promql: str) -> list[float]:
        return [float(found["value"][1]) for found in query(promql) or ()]

    # A scrape that a busy machine holds up fails, and the next one does not.
    assert eventually(lambda: answers(success) == [SESSIONS * STEPS])
    mean_batch = 'nv_inference_count{model="rnn"} / nv_inference_exec_count{model="rnn"}'
    assert eventually(lambda: [1 <= found <= ROWS for found in answers(mean_batch)] == [True])
    assert eventually(lambda: set(ask(f"{prometheus}/api/v1/metadata") or ()) >= COUNTERS)
    types = ask(f"{prometheus}/api/v1/metadata")
    for name in COUNTERS:
        assert types[name][0]["type"] == "counter", name
    assert types[PENDING][0]["type"] == "gauge"
