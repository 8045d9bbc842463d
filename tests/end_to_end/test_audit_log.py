"""The audit log of a server: who did what, in the order in which it happened, without any value that was sent."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from streamcell.client import ModelNotFound, StreamCellError, connect
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from tests.support.audit_lines import audit_lines
from tests.support.onnx_files import parsed, save

GRAPH = (
    "(float[n,2] x, float[n,2] h) => (float[n,2] y, float[n,2] h_next) { y = Neg(x) h_next = Identity(h) }"
)
SECRET = 1234.5678


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        save(parsed(GRAPH), tmp_path / "models" / f"{name}.onnx")
    return tmp_path / "models"


@pytest.mark.conformance
def test_each_thing_that_somebody_does_is_a_line(
    models: Path, tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    path = tmp_path / "audit.log"
    server = start_server(models, "--audit-log", str(path))
    with connect(server.target) as client:
        with client.session("one") as plain:
            plain.run(np.full((3, 2), SECRET, np.float32))
        with client.session("one", resume=True) as kept:
            kept.step(np.full(2, SECRET, np.float32))
            ticket = kept.detach() if hasattr(kept, "detach") else None
        with client.session("one") as closed:
            closed.step(np.zeros(2, np.float32))
            client.close_session(closed.id)
            with pytest.raises(StreamCellError):
                closed.step(np.zeros(2, np.float32))
        with pytest.raises(ModelNotFound):
            client.session("none\n{}").__enter__()
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError):
        rpc.StreamCellStub(channel).CloseSession(pb.CloseSessionRequest(session_id="\n[]"))  # type: ignore[no-untyped-call]
    assert ticket is None or ticket.session == kept.id
    assert server.stop() == 0
    told = audit_lines(path)
    assert [line["event"] for line in told[:2]] == ["loaded", "loaded"]
    assert {line["model"] for line in told[:2]} == {"one", "two"}
    assert all(len(line["sha256"]) == 64 for line in told[:2])
    assert (told[2]["event"], told[-1]["event"]) == ("started", "stopped")
    by = {line["session"]: line for line in told if line["event"] == "opened"}
    assert [*by] == [plain.id, kept.id, closed.id]
    assert all(line["peer"].startswith("ipv4:127.0.0.1:") for line in by.values())
    assert [line.get("resumable") for line in by.values()] == [None, True, None]
    ends = {line["session"]: (line["reason"], line["steps"]) for line in told if line["event"] == "ended"}
    assert ends[plain.id] == ("closed", 3)
    assert ends[closed.id] == ("session_closed", 1)
    assert kept.id in ends
    asked = [(line["session"], line["peer"][:5]) for line in told if line["event"] == "close_asked"]
    assert asked == [(closed.id, "ipv4:"), ("\n[]", "ipv4:")]
    refused = {line["reason"] for line in told if line["event"] == "refused"}
    assert {"MODEL_NOT_FOUND", "SESSION_NOT_FOUND", "SESSION_CLOSED"} <= refused
    assert str(SECRET).encode()[:6] not in path.read_bytes()


@pytest.mark.conformance
def test_models_that_come_and_go_are_told_and_a_rotated_file_is_left(
    models: Path, tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    flags = ("--model-control", "explicit", "--load-model", "one", "--audit-log", str(path))
    server = start_server(models, *flags)
    with connect(server.target) as client:
        client.load_model("two")
        path.rename(old)
        server.process.send_signal(signal.SIGHUP)
        client.unload_model("two")
        (models / "two.onnx").write_bytes(b"not a model")
        with pytest.raises(StreamCellError):
            client.load_model("two")
        with pytest.raises(StreamCellError):
            client.unload_model("two")
    assert server.stop() == 0
    told = [*audit_lines(old), *audit_lines(path)]
    events = [
        (line["event"], line.get("model"))
        for line in told
        if line["event"] in ("loaded", "unloaded", "load_failed")
    ]
    assert events == [
        ("loaded", "one"),
        ("loaded", "two"),
        ("unloaded", "two"),
        ("load_failed", "two"),
    ]
    asked = [(line["event"], line["model"]) for line in told if line["event"].endswith("_asked")]
    assert asked == [(f"{what}_asked", "two") for what in ("load", "unload", "load", "unload")]
    assert all(line["peer"] for line in told if line["event"].endswith("_asked"))
    assert ("loaded", "two") in [(line["event"], line.get("model")) for line in audit_lines(old)]
    assert audit_lines(path)[-1]["event"] == "stopped"
    reasons = [(line["reason"], bool(line.get("peer"))) for line in told if line["event"] == "refused"]
    assert reasons == [("MODEL_LOAD_FAILED", True), ("MODEL_NOT_FOUND", True)]


def test_a_file_that_cannot_be_written_is_told_at_the_start(
    models: Path, tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    with pytest.raises(RuntimeError, match="No such file or directory"):
        start_server(models, "--audit-log", str(tmp_path / "none" / "audit.log"))
