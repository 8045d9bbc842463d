"""A server ends when it is told to, whatever hangs; wrong certificates and too few descriptors are one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from tests.support.certificates import self_signed

Serve = Callable[..., ServerProcess]
Eventually = Callable[[Callable[[], bool]], bool]
STREAMCELL = Path(sys.executable).with_name("streamcell")


def held(release: threading.Event) -> Iterator[pb.StreamRequest]:
    yield pb.StreamRequest(open=pb.OpenSession(model="lstm"))
    yield pb.StreamRequest(inputs=[bytes(12)])
    release.wait(60)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.conformance), signal.SIGINT]
)
def test_a_second_signal_ends_the_server_at_once(
    start_server: Serve, models_dir: Path, number: signal.Signals, eventually: Eventually
) -> None:
    server = start_server(models_dir, "--grace-s", "600", forked=False)
    children = psutil.Process(server.pid).children()
    release = threading.Event()
    with grpc.insecure_channel(server.target) as channel:
        call = rpc.StreamCellStub(channel).Stream(held(release))
        next(call), next(call)
        server.process.send_signal(signal.SIGTERM)
        # It drains: the session that is live keeps it.
        assert eventually(lambda: any(entry["event"] == "draining" for entry in server.log))
        server.process.send_signal(number)
        assert server.process.wait(60) == 128 + number
        release.set()
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_a_server_whose_processes_hang_ends_after_the_grace(start_server: Serve, models_dir: Path) -> None:
    # Of one process: see the next test.
    server = start_server(
        models_dir, "--grace-s", "0.2", "--stop-s", "1", forked=False, STREAMCELL_FRONTENDS="2"
    )
    children = psutil.Process(server.pid).children()
    for process in children:  # stopped, they hear nothing
        process.send_signal(signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 3
    assert psutil.wait_procs(children, timeout=60)[1] == []
    server.stop()  # reads its log to the end
    assert any("not stopped in time" in entry["event"] for entry in server.log)


HANGS = """
import sys, threading
from streamcell.service.signals import Signals
class Server:
    def kill(self): print("killed", flush=True)
    def reload(self): print("reloaded", flush=True)
signals = Signals(0.2)
signals.server = Server()
print("up", flush=True)
signals.wait()
threading.Event().wait()
"""


def test_the_deadline_of_one_process_is_kept_though_nobody_reads_what_it_says() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "reloaded\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 3
    assert "threading.py" in process.stderr.read()  # the stacks
    process.stdout.close()
    process.stderr.close()


@pytest.mark.conformance
def test_sighup_reloads_the_certificate_for_new_connections(
    start_server: Serve, models_dir: Path, tmp_path: Path, eventually: Eventually
) -> None:
    first, second = self_signed(tmp_path, "first"), self_signed(tmp_path, "second")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(pair: tuple[Path, Path]) -> None:
        cert.write_bytes(pair[0].read_bytes())
        key.write_bytes(pair[1].read_bytes())

    put(first)
    server = start_server(models_dir, "--tls-cert", str(cert), "--tls-key", str(key), forked=False)
    target = server.target.replace("127.0.0.1", "localhost")

    def trusted(pair: tuple[Path, Path]) -> bool:
        options = (("grpc.use_local_subchannel_pool", 1),)
        credentials = grpc.ssl_channel_credentials(pair[0].read_bytes())
        with grpc.secure_channel(target, credentials, options) as channel:
            try:
                rpc.StreamCellStub(channel).ListModels(pb.ListModelsRequest(), timeout=60)
            except grpc.RpcError:
                return False
            return True

    release = threading.Event()
    live = grpc.secure_channel(target, grpc.ssl_channel_credentials(first[0].read_bytes()))
    with live:
        call = rpc.StreamCellStub(live).Stream(held(release))
        next(call), next(call)
        key.write_bytes(second[1].read_bytes())  # not the certificate's
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "not reloaded" in f"{server.log} {server.said}")
        assert trusted(first)
        put(second)
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: trusted(second) and not trusted(first))
        release.set()
        assert list(call) == []  # the live connection has ended as it should
    assert server.stop() == 0


@pytest.mark.parametrize("wrong", ["not there", "no PEM", "another's key", "encrypted"])
def test_a_wrong_key_is_one_line_that_names_the_file(
    models_dir: Path, tmp_path: Path, frontends: int, wrong: str
) -> None:
    cert, key = self_signed(tmp_path, "good")
    if wrong == "not there":
        key, says = tmp_path / "none.key", "No such file"
    elif wrong == "no PEM":
        key.write_text("hello")
        says = "no PEM private key"
    elif wrong == "another's key":
        key, says = self_signed(tmp_path, "other")[1], "is not the key of"
    else:
        cert, key = self_signed(tmp_path, "locked", password="secret")
        says = "the key is encrypted"
    done = subprocess.run(
        [
            STREAMCELL, "serve", "--models", models_dir, "--port", "0", "--metrics-port", "0", "--tls-cert", cert,
            "--tls-key", key, "--frontends", str(frontends),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(key) in line
    assert says in line


@pytest.mark.conformance
def test_too_few_descriptors_are_one_line_that_says_how_many(models_dir: Path, frontends: int) -> None:
    done = subprocess.run(
        [
            "sh", "-c", 'ulimit -n 64 && exec "$0" "$@"', STREAMCELL, "serve", "--models", models_dir, "--port", "0",
            "--metrics-port", "0", "--frontends", str(frontends),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "64 file descriptors are too few" in line
    assert "ulimit -Hn" in line
