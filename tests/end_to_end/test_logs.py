"""Logs never stop the server: nobody reads them, the disk is full, clients cause the same line again and again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import grpc
import numpy as np
import pytest

from streamcell.client import Client, StreamCellError, connect
from streamcell.proto.inference import oip, rpc
from tests.support.certificates import self_signed
from tests.support.onnx_files import parsed, save
from tests.support.ports import free_port
from tests.support.waiting import waited

# Its table has eight rows, so that its run fails for a number above seven.
FRAGILE = """
(float[batch, 1] x) => (float[batch, 1] y) <float[8] t = {0, 1, 2, 3, 4, 5, 6, 7}>
{ i = Cast <to = 7> (x) y = Gather (t, i) }
"""
START_S = 120.0
EXPLICIT = ("--model-control", "explicit")


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose run fails for some inputs, and one that cannot be loaded."""
    folder = tmp_path_factory.mktemp("fragile")
    sidecar = 'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n'
    save(parsed(FRAGILE), folder / "fragile.onnx", sidecar)
    (folder / "broken.onnx").write_bytes(b"no model")
    return folder


class Mute:
    """A server whose standard error is of no use, on known ports."""

    def __init__(self, models: Path, stderr: int | IO[bytes], frontends: int, *flags: str) -> None:
        port, self._metrics_port = free_port(), free_port()
        self.target = f"127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamcell.cli", "serve", "--models", str(models),
             "--port", str(port), "--metrics-port", str(self._metrics_port), *flags],
            stderr=stderr, env={**os.environ, "STREAMCELL_FRONTENDS": str(frontends)},
        )  # fmt: skip

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}{path}", timeout=60) as answer:
            text: str = answer.read().decode()
            return text

    def ready(self) -> bool:
        assert self.process.poll() is None
        try:
            return self.get("/readyz") == "ready\n"
        except OSError:
            return False

    def dropped(self, reason: str) -> float:
        name = f'streamcell_log_lines_dropped_total{{reason="{reason}"}} '
        (line,) = (line for line in self.get("/metrics").splitlines() if line.startswith(name))
        return float(line.removeprefix(name))


Start = Callable[..., Mute]


@pytest.fixture
def start(frontends: int) -> Iterator[Start]:
    """Starts mute servers and waits until they are ready; what is left of them is killed."""
    with ExitStack() as stack:

        def begin(models: Path, stderr: int | IO[bytes], *flags: str) -> Mute:
            server = Mute(models, stderr, frontends, *flags)
            stack.callback(server.process.kill)
            end_s = time.monotonic() + START_S
            while not server.ready():
                assert time.monotonic() < end_s, f"the server is not ready after {START_S:g} s"
                time.sleep(0.05)
            return server

        yield begin


def serves(client: Client) -> None:
    with client.session("fragile") as session:
        assert session.step(np.array([5], np.float32)).tolist() == [5]


def load(target: str, model: str, times: int = 1) -> None:
    """Have a model loaded, of which there is a line in the log whether that goes well or not."""
    with grpc.insecure_channel(target) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        for _ in range(times):
            try:
                stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name=model), timeout=60)
            except grpc.RpcError:
                assert model == "broken"


@pytest.mark.conformance
def test_a_pipe_that_nobody_reads_stops_nothing(start: Start, fragile: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    full = False
    while not full:
        try:
            os.write(writing, b"x" * 1024)
        except BlockingIOError:
            full = True
    os.set_blocking(writing, True)
    server = start(fragile, writing, *EXPLICIT)
    os.close(writing)
    load(server.target, "fragile")
    with connect(server.target) as client:
        serves(client)
        load(server.target, "broken", 60)
        serves(client)
    assert waited(lambda: server.dropped("limited") > 0)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    os.close(reading)


def test_a_full_disk_stops_nothing(start: Start, fragile: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        server = start(fragile, full, *EXPLICIT)
    load(server.target, "fragile")
    load(server.target, "broken", 5)
    with connect(server.target) as client:
        serves(client)
    assert waited(lambda: server.dropped("write_failed") >= 6)  # another thread writes
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def test_a_reader_that_goes_away_stops_nothing(start: Start, fragile: Path) -> None:
    reading, writing = os.pipe()
    server = start(fragile, writing, *EXPLICIT)
    os.close(writing)
    os.close(reading)
    load(server.target, "fragile")
    with connect(server.target) as client:
        serves(client)
    assert waited(lambda: server.dropped("write_failed") > 0)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def test_a_client_cannot_fill_a_disk_with_loads_that_fail(start_server: Any, fragile: Path) -> None:
    server = start_server(fragile, *EXPLICIT)
    load(server.target, "broken", 100)
    assert waited(lambda: server.metric("streamcell_log_lines_dropped_total", reason="limited") > 0)
    server.stop()
    failed = [entry for entry in server.log if entry["event"] == "model not loaded"]
    assert 30 <= len(failed) < 100


def test_a_client_cannot_fill_a_disk_with_runs_that_fail(start_server: Any, fragile: Path) -> None:
    server = start_server(fragile, *EXPLICIT, "--load-model", "fragile")
    with connect(server.target) as client:
        for _ in range(20):
            with pytest.raises(StreamCellError), client.session("fragile") as session:
                session.step(np.array([99], np.float32))
        serves(client)
    server.stop()
    assert len(server.log) < 20
    assert server.said == []  # ONNX Runtime prints nothing past the log


def test_a_client_cannot_fill_a_disk_with_failed_handshakes(
    start_server: Any, fragile: Path, tmp_path: Path
) -> None:
    certificate, key = self_signed(tmp_path)
    server = start_server(fragile, *EXPLICIT, "--tls-cert", str(certificate), "--tls-key", str(key))
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", int(server.target.rpartition(":")[2]))) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
    server.stop()
    assert server.said == []


def test_a_crash_is_told(start_server: Any, fragile: Path) -> None:
    server = start_server(fragile, *EXPLICIT)
    server.process.send_signal(signal.SIGABRT)
    server.process.wait(60)
    server.stop()
    assert any("Fatal Python error: Aborted" in line for line in server.said)


PRINTS = """
import json, logging, sys, threading, warnings
import structlog
from streamcell.service import configure_logs
from streamcell.service.logs.configure import lines_lost
configure_logs("info", "json")
def fail():
    raise ValueError("in a thread")
thread = threading.Thread(target=fail); thread.start(); thread.join()
logging.getLogger("grpc").error("oh %s", "no")
warnings.warn("careful")
structlog.get_logger().error("long", text="x" * 100_000, bytes=b"\\xff", odd="\\ud800")
sys.stderr.write("no line feed")
if sys.argv[1:]:
    raise RuntimeError("the end")
"""


def test_all_that_python_prints_goes_through_the_log_and_comes_out_at_the_end() -> None:
    for arguments, code in (([], 0), (["fail"], 1)):
        done = subprocess.run([sys.executable, "-c", PRINTS, *arguments], capture_output=True, text=True)
        assert done.returncode == code
        lines = done.stderr.splitlines()
        logged = {entry["event"]: entry for line in lines if line[0] == "{" for entry in [json.loads(line)]}
        assert logged["grpc"]["text"] == "oh no"
        assert "careful" in logged["py.warnings"]["text"]
        assert len(logged["long"]["text"]) < 10_000
        assert "ValueError: in a thread" in lines
        assert any(line.startswith("no line feed") for line in lines)
        assert ("RuntimeError: the end" in lines[-1]) == bool(arguments)


def test_with_a_full_disk_the_exit_code_stays() -> None:
    for arguments, code in (([], 0), (["fail"], 1)):
        with Path("/dev/full").open("wb") as full:
            assert subprocess.run([sys.executable, "-c", PRINTS, *arguments], stderr=full).returncode == code
