"""SIGTERM: readiness off, no new sessions, live streams finish within the grace or get a typed end, exit code 0."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from streamcell.proto import pb, rpc
from tests.support.waiting import waited

OPEN = pb.StreamRequest(open=pb.OpenSession(model="lstm"))
STEP = pb.StreamRequest(inputs=[bytes(12)])


def held(release: threading.Event) -> Iterator[pb.StreamRequest]:
    yield OPEN
    yield STEP
    release.wait(60)
    yield STEP


def agent(server: Any) -> bytes:
    """What an agent check of HAProxy's is told."""
    (port,) = [entry["agent_port"] for entry in server.log if entry["event"] == "serving"]
    with socket.create_connection(("127.0.0.1", port), 60) as asked:
        return b"".join(iter(lambda: asked.recv(64), b""))


def draining(server: Any) -> None:
    """Wait until the server has said that it drains."""
    assert waited(lambda: any(entry["event"] == "draining" for entry in server.log))


@pytest.mark.conformance
def test_a_live_stream_finishes_within_the_grace_and_new_ones_are_refused(
    start_server: Any, models_dir: Path
) -> None:
    server = start_server(models_dir, "--grace-s", "30", "--agent-port", "0", forked=False)
    assert agent(server) == b"ready up\n"
    release = threading.Event()
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        call = stub.Stream(held(release))
        next(call), next(call)
        server.ask_to_stop()
        draining(server)
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="lstm"))
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.metric("streamcell_ready") == 0
        assert agent(server) == b"drain\n"
        for refused in (
            lambda: next(stub.Stream(iter([OPEN]))),
            lambda: stub.Predict(pb.PredictRequest(model="mlp", inputs=[bytes(12)])),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                refused()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            assert "shutting down" in caught.value.details()  # type: ignore[attr-defined]
        release.set()
        assert [reply.step_index for reply in call] == [2]
        assert call.code() is grpc.StatusCode.OK
    assert server.process.wait(60) == 0


@pytest.mark.conformance
def test_a_stream_that_outlives_the_grace_gets_a_typed_end(start_server: Any, models_dir: Path) -> None:
    server = start_server(models_dir, "--grace-s", "0.2", forked=False)
    release = threading.Event()
    with grpc.insecure_channel(server.target) as channel:
        call = rpc.StreamCellStub(channel).Stream(held(release))
        next(call), next(call)
        server.ask_to_stop()
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert "the session's state is gone" in call.details()
        release.set()
    assert server.process.wait(60) == 0
    server.stop()  # reads its log to the end
    assert server.log[-1]["event"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once_with_exit_code_0(
    start_server: Any, models_dir: Path, number: signal.Signals
) -> None:
    server = start_server(models_dir, "--grace-s", "600", forked=False)
    server.process.send_signal(number)
    assert server.process.wait(60) == 0
