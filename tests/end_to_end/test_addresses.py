"""Where the server listens: IPv6 for every client and command, and ports that are taken."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.client import connect, connect_async
from streamcell.client.local_server import ServerProcess, ServerProcessError
from streamcell.service.addresses import check_free, joined
from streamcell.service.transport.tcp_figures import TcpFigures, peer_name

X = np.zeros((4, 3), np.float32)

pytestmark = pytest.mark.conformance


@pytest.fixture(scope="module", autouse=True)
def ipv6() -> None:
    try:
        check_free("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6: sysctl net.ipv6.conf.lo.disable_ipv6=0")


@pytest.fixture(scope="module")
def six(start_server: Any, models_dir: Path) -> ServerProcess:
    server: ServerProcess = start_server(models_dir, "--host", "::1")
    return server


def stepped(target: str) -> int:
    """Steps applied by a session of its own, a shared one and a pool."""
    with connect(target) as client, ExitStack() as stack:
        session = stack.enter_context(client.session("lstm"))
        shared = stack.enter_context(client.session("lstm", multiplex=True))
        session.run(X), shared.run(X)
        with client.pool("lstm", 2) as pool:
            pool.step(np.zeros((2, 3), np.float32))
        (peer,) = {each.peer for each in client.sessions("lstm") if each.id == session.id}
        assert peer.startswith("ipv6:%5B::1%5D" if "[" in target else "ipv4:127.0.0.1")
        return session.step_index + shared.step_index


def test_every_client_and_command_speaks_ipv6(six: ServerProcess, tmp_path: Path) -> None:
    assert six.target.startswith("[::1]:")
    assert six.metrics_url.startswith("http://[::1]:")
    assert six.metric("streamcell_ready") == 1
    assert stepped(six.target) == 8

    async def steps() -> int:
        async with connect_async(six.target) as client, client.session("lstm") as session:
            await session.run(X)
            return session.step_index

    assert asyncio.run(steps()) == 4
    with triton.InferenceServerClient(six.target) as client:
        assert client.is_server_ready()
    np.save(tmp_path / "x.npy", X)
    done = CliRunner().invoke(app, ["stream", "lstm", str(tmp_path / "x.npy"), "--target", six.target])
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 5)


def test_the_wildcard_takes_both_families(start_server: Any, models_dir: Path) -> None:
    server = start_server(models_dir, "--host", "::")
    port = server.target.rpartition(":")[2]
    for target in (f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert stepped(target) == 8
    assert server.metric("streamcell_ready") == 1


def test_a_connection_over_ipv6_is_found_among_the_process_s_sockets() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        client = stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
        accepted, address = listener.accept()
        stack.enter_context(accepted)
        client.sendall(b"x" * 100)
        assert accepted.recv(60)
        peer = peer_name(address)
        assert peer == f"ipv6:%5B::1%5D:{client.getsockname()[1]}"
        figures = TcpFigures()
        figures.port = listener.getsockname()[1]
        assert figures.of({peer})[peer] == (60, 0)


@pytest.mark.parametrize(("host", "flag"), [("127.0.0.1", "--metrics-port"), ("::1", "--port")])
def test_a_port_that_is_taken_is_told_before_models_are_loaded(
    tmp_path: Path, host: str, flag: str, frontends: int
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not read")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        environment = {"STREAMCELL_FRONTENDS": str(frontends)}
        server = ServerProcess(tmp_path, "--host", host, flag, str(port), environment=environment)
        with pytest.raises(ServerProcessError) as caught:
            server.wait_until_up()
        assert server.stop() == 1
        text = str(caught.value)
        assert f"cannot listen on {joined(host, port)}" in text
        assert (
            f"Address already in use: another process listens there: stop it, or choose a port by {flag}"
            in text
        )
        assert "broken.onnx" not in text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("192.0.2.1", "it is no address of this machine: --host 127.0.0.1 is for this machine alone"),
        ("nowhere.invalid", "no machine is called so"),
    ],
)
def test_an_address_that_is_not_ours_is_told(tmp_path: Path, host: str, text: str, frontends: int) -> None:
    command = [sys.executable, "-m", "streamcell.cli", "serve", "--models", tmp_path, "--host", host]
    flags = ["--metrics-host", "127.0.0.1", "--metrics-port", "0", "--frontends", str(frontends)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"cannot listen on {host}:8500: " in done.stderr
    assert text in done.stderr
