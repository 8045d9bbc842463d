"""Resumable sessions behind front ends: they outlive a front end, for they are in the engine process.

With a journal their streams outlive the engine process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from tests.support.forked import ForkedServer
from tests.support.frontends import Eventually, processes
from tests.support.ports import free_port
from tests.support.resumable import Owner, Raw, save_dice, save_sum, step, sums
from tests.support.waiting import waited

Serving = health_pb2.HealthCheckResponse


def test_front_ends_may_die(start_server: Callable[..., ServerProcess], folder: Path) -> None:
    server = start_server(folder, STREAMCELL_FRONTENDS="2")
    with connect(server.target) as client, client.session("sum", resume=True) as session:
        total = 0.0
        for kill in range(2):
            for x in range(20):
                total += x
                assert session.step([float(x)]).tolist() == [total]
            for process in processes(server, "frontend"):
                process.kill()
            assert session.step([1.0]).tolist() == [total + 1]
            total += 1
            assert session.resumes > kill


class Durable:
    """Servers of two front ends on one port and one journal, whose engine process comes back when it may."""

    def __init__(self, folder: Path) -> None:
        self._journal, self._port = folder / "journal", free_port()
        self.models = folder / "models"
        self.models.mkdir()
        save_dice(save_sum(self.models))
        self.begin()

    def begin(self) -> None:
        self.server = ForkedServer(
            self.models, "--port", str(self._port), "--max-sessions", "16", "--frontends", "2", "--grace-s", "0",
            "--durability", "process", "--journal-dir", str(self._journal),
        )  # fmt: skip
        self.server.wait_until_up()

    def kill(self, *kinds: str) -> None:
        for kind in kinds:
            for process in processes(self.server, kind):
                process.kill()

    def keep_away(self) -> None:
        """Without its models the engine process cannot come back."""
        self._hidden = self.models.rename(self.models.with_name("hidden"))
        self.kill("engine")

    def let_back(self) -> None:
        self._hidden.rename(self.models)


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Durable]:
    """Each test leaves it up."""
    made = Durable(tmp_path_factory.mktemp("durable"))
    yield made
    made.server.stop()


def test_a_killed_engine_process_is_a_pause(durable: Durable) -> None:
    restarts = durable.server.metric("streamcell_process_restarts_total", kind="engine")
    with (
        connect(durable.server.target) as client,
        client.session("sum", resume=True) as session,
        client.pool("sum", 2, resume=True) as pool,
    ):
        total = 0.0
        for _ in range(2):
            for x in range(20):
                total += x
                assert session.step([float(x)]).tolist() == [total]
            durable.kill("engine")
            assert session.step([1.0]).tolist() == [total + 1]
            total += 1
            assert pool.step([[total], [0.0]])[1].tolist() == [0]
        assert session.resumes == pool.resumes == 0
    assert waited(
        lambda: durable.server.metric("streamcell_process_restarts_total", kind="engine") == restarts + 2
    )
    # Of the last engine process.
    assert waited(
        lambda: durable.server.metric("streamcell_resumes_total", source="restart", result="resumed") == 2
    )
    assert waited(lambda: durable.server.metric("streamcell_stream_pause_seconds_count") == 2)


def test_while_there_is_no_engine_process_kept_streams_wait_and_others_end(
    durable: Durable, eventually: Eventually
) -> None:
    target, owner = durable.server.target, Owner(4)
    kept = Raw(target, owner.opening())
    assert kept.opened().durability == pb.DURABILITY_PROCESS
    in_memory = Raw(target, Owner().opening(durability=pb.DURABILITY_NONE))
    in_memory.opened()
    usual = Raw(target, pb.StreamRequest(open=pb.OpenSession(model="sum")))
    usual.opened()
    with grpc.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="sum"))
        assert next(health).status == Serving.SERVING
        durable.keep_away()
        assert next(health).status == Serving.NOT_SERVING
        assert eventually(lambda: durable.server.metric("streamcell_ready") == 0)
        assert in_memory.error()[0] == usual.error()[0] == "ENGINE_LOST"
        refused = Raw(target, Owner().opening())
        assert refused.error()[0] == "ENGINE_LOST"
        kept.send(step(1), step(2, 3))
        durable.let_back()
        assert [sums(reply) for reply in kept.replies(2)] == [[1], [3, 6]]
        assert next(health).status == Serving.SERVING
    assert kept.close(2) == []
    assert eventually(lambda: durable.server.metric("streamcell_sessions") == 0)
    for raw in (kept, in_memory, usual, refused):
        raw.cut()


def test_a_client_whose_front_end_dies_too_resumes_once_there_is_an_engine_process(
    durable: Durable, eventually: Eventually
) -> None:
    assert eventually(lambda: not any(map(connected, processes(durable.server, "frontend"))))
    with connect(durable.server.target) as client, client.session("sum", resume=True) as session:
        assert session.step([1.0]).tolist() == [1]
        durable.keep_away()
        assert eventually(lambda: durable.server.metric("streamcell_ready") == 0)
        (holder,) = filter(connected, processes(durable.server, "frontend"))
        (other,) = (each for each in processes(durable.server, "frontend") if each != holder)
        holder.kill()
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(session.step, [2.0])
            assert eventually(lambda: connected(other))  # where it is told of the loss
            durable.let_back()
            assert answer.result(60).tolist() == [3]
        assert session.resumes == 1


def connected(process: psutil.Process) -> bool:
    """True if a client is connected to that front end."""
    return any(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp"))


def test_a_server_that_is_stopped_meanwhile_keeps_the_sessions(
    durable: Durable, eventually: Eventually
) -> None:
    owner = Owner(4)
    raw = Raw(durable.server.target, owner.opening())
    raw.opened()
    raw.send(step(1))
    raw.reply()
    durable.keep_away()
    assert eventually(lambda: durable.server.metric("streamcell_ready") == 0)
    assert durable.server.stop() == 0
    assert raw.error()[0] == "SERVER_DRAINING"
    durable.let_back()
    durable.begin()
    raw = Raw(durable.server.target, owner.resume(1))
    assert raw.opened().applied == 1
    raw.send(step(2))
    assert sums(raw.reply()) == [3]


def test_a_killed_engine_process_is_a_pause_in_a_generation(durable: Durable) -> None:
    with connect(durable.server.target) as client:
        with client.session("dice", resume=True) as session:
            chosen = []
            for each in session.generate(90, seed=4):
                chosen.append(each.chosen)
                if len(chosen) in (10, 50):
                    durable.kill("engine")
            assert not session.resumes
        with client.session("dice") as session:
            assert chosen == session.generate(90, seed=4).all().chosen.tolist()
