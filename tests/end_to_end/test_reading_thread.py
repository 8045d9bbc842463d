"""Each process of a server asks grpcio to read the sockets on the thread that serves, before it imports grpcio.

That shows in how often the core's own threads wake up: for each message if they read the sockets, else hardly ever.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from streamcell.client.local_server import ServerProcess
from tests.support.frontends import processes
from tests.support.resumable import save_sum
from tests.support.waiting import waited

CHECKS = 400
# Of this module: a program that imports grpcio first, and does not ask.
GRPC_FIRST = "tests.support.grpc_first"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_sum(folder)
    return folder


def wake_ups(pid: int) -> int:
    """How often the core's own threads of that process have slept."""
    found = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        if (thread / "comm").read_text().strip() == "event_engine":
            lines = (thread / "status").read_text().splitlines()
            found += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return found


def wake_ups_of_checks(target: str, pid: int) -> int:
    """How often they sleep during so many health checks, one after another."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        for _ in range(CHECKS // 10):  # the connection is set up
            stub.Check(request, timeout=60)
        before = wake_ups(pid)
        for _ in range(CHECKS):
            stub.Check(request, timeout=60)
        return wake_ups(pid) - before


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("streamcell.cli", "serve"),
        (GRPC_FIRST, "frontend"),
        (GRPC_FIRST, "engine"),
    ],
)
def test_the_thread_that_serves_reads_the_sockets(
    models: Path, tmp_path: Path, module: str, kind: str
) -> None:
    admin = f"unix:{tmp_path}/admin.sock"
    flags = [] if kind == "serve" else ["--frontends", "1", "--admin", admin]
    with ServerProcess(models, *flags, environment={"GRPC_EXPERIMENTS": None}, module=(module,)) as server:
        pid = server.pid if kind == "serve" else processes(server, kind)[0].pid
        assert "GRPC_EXPERIMENTS" not in psutil.Process(pid).environ(), "it must ask by itself"
        target = admin if kind == "engine" else server.target
        # Idle, each of them wakes up a few times a second: where checks take long, that counts as well.
        assert waited(lambda: wake_ups_of_checks(target, pid) < CHECKS // 4)


def test_a_server_that_asks_too_late_has_its_sockets_read_by_threads_of_the_core(models: Path) -> None:
    """So the count above tells them apart."""
    with ServerProcess(models, environment={"GRPC_EXPERIMENTS": None}, module=(GRPC_FIRST,)) as server:
        assert wake_ups_of_checks(server.target, server.pid) > CHECKS // 2
