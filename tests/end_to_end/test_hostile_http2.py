"""What a peer does below gRPC: opens and resets, opens too much, or dies without a word."""

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

from streamcell.benchmarks.load.raw_http2 import RawConnection, message
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from tests.support.waiting import waited

MIB = 1024 * 1024
STREAM = "/streamcell.v1.StreamCell/Stream"
PREDICT = pb.PredictRequest(model="lstm", inputs=[bytes(12)])
Serve = Callable[..., ServerProcess]
Eventually = Callable[[Callable[[], bool]], bool]


def memory(process: psutil.Process) -> int:
    """Resident bytes of a server of one process."""
    return int(process.memory_info().rss)


@pytest.fixture(scope="module")
def bounded(start_server: Serve, models_dir: Path) -> ServerProcess:
    return start_server(models_dir, "--max-connections", "8", "--max-concurrent-streams", "100")


@pytest.mark.alone
def test_rapid_reset_stays_bounded_in_memory(start_server: Serve, models_dir: Path) -> None:
    server = start_server(models_dir)
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        expected = stub.Predict(PREDICT).outputs
        process = psutil.Process(server.pid)
        before, most = memory(process), 0
        left = threading.Semaphore(0)

        def attack() -> None:
            for _ in range(3):
                try:
                    with RawConnection(server.target) as connection:
                        for _ in range(25):
                            connection.open_and_reset(STREAM, 200)
                except OSError:
                    continue
            left.release()

        attackers = [threading.Thread(target=attack) for _ in range(4)]
        for attacker in attackers:
            attacker.start()
        while any(attacker.is_alive() for attacker in attackers):
            most = max(most, memory(process))
            left.acquire(timeout=0.05)
        assert stub.Predict(PREDICT, timeout=60).outputs == expected
    # 60,000 calls; where all of them were kept waiting they took 750 MB.
    assert most - before < 350 * MIB, f"{(most - before) / MIB:.0f} MiB"


def test_as_many_calls_may_begin_at_once_as_there_may_be_sessions(
    start_server: Serve, models_dir: Path, eventually: Eventually
) -> None:
    server = start_server(models_dir, "--max-sessions", "6000")
    opening = message(pb.StreamRequest(open=pb.OpenSession(model="lstm")).SerializeToString())
    with RawConnection(server.target) as connection:
        streams = connection.open_many(STREAM, 5_700)
        for stream in streams:
            assert connection.send(stream, opening, patience_s=60) == len(opening)
        assert eventually(
            lambda: connection.ended or server.metric("streamcell_sessions", model="lstm") == 5_700
        )
        assert not connection.ended


def test_a_connection_is_told_how_many_streams_it_may_have(
    bounded: ServerProcess, served: ServerProcess
) -> None:
    with RawConnection(bounded.target) as connection:
        assert connection.streams_allowed == 100
    with RawConnection(served.target) as connection:
        assert connection.streams_allowed == 20_000  # twice --max-sessions


@pytest.mark.conformance
def test_connections_are_bounded_and_come_back(
    bounded: ServerProcess, frontends: int, eventually: Eventually
) -> None:
    most = 8 * max(1, frontends)
    connections: list[RawConnection] = []
    try:
        for _ in range(4 * most):
            try:
                connections.append(RawConnection(bounded.target))
            except OSError:  # closed before it had settled
                continue
        # Some have settled before the server closes them.
        assert eventually(lambda: sum(not each.gone.is_set() for each in connections) <= most)
    finally:
        for each in connections:
            each.close()

    def answers() -> bool:
        try:
            with RawConnection(bounded.target):
                return True
        except OSError:
            return False

    assert eventually(answers)


SILENT = """
import sys, threading
import grpc
from streamcell.proto import pb, rpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    requests = [pb.StreamRequest(open=pb.OpenSession(model="lstm")), pb.StreamRequest(inputs=[bytes(12)])]
    def sent():
        yield from requests
        threading.Event().wait()
    call = rpc.StreamCellStub(channel).Stream(sent())
    next(call), next(call)
    print("open", flush=True)
    threading.Event().wait()
"""


@pytest.fixture
def silent() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    made: list[subprocess.Popen[str]] = []

    def start(target: str) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen([sys.executable, "-c", SILENT, target], stdout=subprocess.PIPE, text=True)
        )
        assert made[-1].stdout is not None
        assert made[-1].stdout.readline() == "open\n"
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_a_peer_that_has_died_without_a_word_gives_its_slot_back(
    start_server: Serve,
    models_dir: Path,
    silent: Callable[[str], subprocess.Popen[str]],
    eventually: Eventually,
) -> None:
    # A living client of a busy machine answers within five seconds.
    flags = ("--idle-timeout-s", "0", "--keepalive-s", "0.5", "--keepalive-timeout-s", "5")
    server = start_server(models_dir, *flags)
    client = silent(server.target)
    assert server.metric("streamcell_slots_used", model="lstm") == 1
    client.send_signal(signal.SIGSTOP)
    assert eventually(lambda: server.metric("streamcell_slots_used", model="lstm") == 0)
    assert waited(
        lambda: server.metric("streamcell_sessions_ended_total", model="lstm", reason="cancelled") == 1
    )
