"""Several processes as one server: sessions spread over front ends, and what happens when a process is killed.

That a server with front ends does what one process does is held by the tests that are marked `conformance`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from streamcell.client import Client, StreamCellError, connect
from streamcell.client.errors import SessionLimit, Unavailable
from streamcell.client.local_server import ServerProcess, ServerProcessError
from streamcell.proto import pb, rpc

SESSIONS = 24
# Connections of their own, so that the kernel deals them out over the front ends.
APART = {"grpc.use_local_subchannel_pool": 1}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture
def serve(models_dir: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers with two front ends."""
    with ExitStack() as stack:

        def start(*flags: str) -> ServerProcess:
            return stack.enter_context(ServerProcess(models_dir, "--frontends", "2", *flags))

        yield start


@pytest.fixture
def server(serve: Callable[..., ServerProcess]) -> ServerProcess:
    return serve("--max-sessions", str(SESSIONS), "--queue-messages", "4")


def processes(server: ServerProcess, kind: str) -> list[psutil.Process]:
    """The running processes of a kind, "engine" or "frontend"."""
    found = []
    for child in psutil.Process(server.pid).children():
        try:
            if f"streamcell.service.processes.{kind}" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


class Spread:
    """Clients with a connection each, on both front ends."""

    def __init__(self, server: ServerProcess, stack: ExitStack, at_least: int = 6) -> None:
        self.clients: list[Client] = []
        while len(self.clients) < at_least or 0 in (counts := self._connections(server)):
            client = stack.enter_context(connect(server.target, options=[*APART.items()]))
            client.models()
            self.clients.append(client)
            assert len(self.clients) < 64, f"connections of the front ends: {counts}"

    @staticmethod
    def _connections(server: ServerProcess) -> list[int]:
        return [
            sum(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp"))
            for process in processes(server, "frontend")
        ]


@pytest.fixture
def spread(server: ServerProcess) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        yield Spread(server, stack).clients


def truth(module: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        y: np.ndarray = module(torch.from_numpy(x[None]))[0][0].numpy()
    return y


def noise(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_sessions_of_all_front_ends_share_batches_and_equal_pytorch(
    server: ServerProcess, spread: list[Client], modules: dict[str, torch.nn.Module]
) -> None:
    """Steps, chunks longer than a run, and pipelined messages, from every front end at once."""
    x = noise(SESSIONS, 200, 3)
    y = np.zeros((SESSIONS, 200, 2), np.float32)
    start = threading.Barrier(SESSIONS)

    def run(index: int) -> None:
        mine = x[index]
        with spread[index % len(spread)].session("lstm") as session:
            start.wait(30)
            if index % 3 == 0:
                y[index] = [session.step(step) for step in mine]
            elif index % 3 == 1:
                y[index] = np.concatenate([session.run(mine[:150]), session.run(mine[150:])])
            else:
                y[index] = list(session.stream(iter(mine), window=16))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(SESSIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for index in range(SESSIONS):
        np.testing.assert_allclose(y[index], truth(modules["lstm"], x[index]), **TOLERANCE)
    assert server.metric("streamcell_steps_total", model="lstm") == SESSIONS * 200
    assert server.metric("streamcell_chunks_total") > server.metric("streamcell_batch_rows_count")


def test_the_bound_on_sessions_is_one_for_all_front_ends(
    server: ServerProcess, spread: list[Client], eventually: Eventually
) -> None:
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(spread[index % len(spread)].session("lstm")) for index in range(SESSIONS)
        ]
        for session in sessions:
            session.step(np.zeros(3, np.float32))
        for client in spread:
            with pytest.raises(SessionLimit), client.session("lstm") as session:
                session.step(np.zeros(3, np.float32))
        assert server.metric("streamcell_slots_used", model="lstm") == SESSIONS
        sessions.pop().close()
        assert eventually(lambda: server.metric("streamcell_slots_used", model="lstm") == SESSIONS - 1)
        with spread[0].session("lstm") as session:
            session.step(np.zeros(3, np.float32))
    assert eventually(lambda: server.metric("streamcell_slots_used") == 0)


def test_sessions_are_listed_and_closed_from_any_front_end(
    server: ServerProcess, spread: list[Client]
) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(client.session("lstm")) for client in spread]
        for count, session in enumerate(sessions, 1):
            session.run(np.zeros((count, 3), np.float32))
        for client in spread:
            seen = {each.id: each for each in client.sessions("lstm")}
            for count, session in enumerate(sessions, 1):
                assert seen[session.id].step_index == count
                assert "127.0.0.1" in seen[session.id].peer
        assert spread[-1].close_session(sessions[0].id) == 1
        with pytest.raises(StreamCellError) as caught:
            sessions[0].step(np.zeros(3, np.float32))
        assert caught.value.reason == "SESSION_CLOSED"


def test_idle_sessions_expire(serve: Callable[..., ServerProcess]) -> None:
    server = serve("--idle-timeout-s", "0.5")
    with connect(server.target) as client, client.session("lstm") as session:
        session.step(np.zeros(3, np.float32))
        threading.Event().wait(2)
        with pytest.raises(StreamCellError) as caught:
            session.step(np.zeros(3, np.float32))
        assert caught.value.reason == "SESSION_EXPIRED"
        assert int(caught.value.metadata["step_index"]) == 1


class Steady:
    """A session that is stepped over and over by a thread, and held against PyTorch at its end."""

    def __init__(self, client: Client, module: torch.nn.Module, seed: int) -> None:
        self._client = client
        self._module = module
        self._x = noise(20_000, 3, seed=seed)
        self._y: list[np.ndarray] = []
        self._stop = threading.Event()
        self.going = threading.Event()
        self.error: StreamCellError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._client.session("lstm") as session:
                for x in self._x:
                    self._y.append(session.step(x))
                    self.going.set()
                    if self._stop.is_set():
                        return
        except StreamCellError as error:
            self.error = error

    def finish(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        steps = len(self._y)
        assert steps
        np.testing.assert_allclose(np.stack(self._y), truth(self._module, self._x[:steps]), **TOLERANCE)


def test_a_front_end_that_dies_takes_only_its_own_streams_along(
    server: ServerProcess, spread: list[Client], modules: dict[str, torch.nn.Module], eventually: Eventually
) -> None:
    streams = [Steady(client, modules["lstm"], seed) for seed, client in enumerate(spread)]
    for stream in streams:
        assert stream.going.wait(30)
    victim, other = processes(server, "frontend")
    pool = next(iter(spread)).pool("lstm", 2)
    victim.send_signal(signal.SIGKILL)
    assert eventually(lambda: len(processes(server, "frontend")) == 2)
    assert eventually(lambda: any(stream.error for stream in streams))
    assert eventually(lambda: server.metric("streamcell_sessions_ended_total", reason="frontend_lost") > 0)
    for stream in streams:
        stream.finish()
    lost = [stream for stream in streams if stream.error is not None]
    assert 0 < len(lost) < len(streams)
    assert all(isinstance(stream.error, Unavailable) for stream in lost)
    pool.close()
    assert eventually(lambda: server.metric("streamcell_slots_used") == 0)
    assert eventually(lambda: server.metric("streamcell_sessions") == 0)
    assert server.metric("streamcell_process_restarts_total", kind="frontend") == 1
    assert server.metric("streamcell_process_restarts_total", kind="engine") == 0
    assert other.is_running()
    with ExitStack() as stack:  # the new one answers, too
        for client in Spread(server, stack).clients:
            with client.session("lstm") as session:
                session.step(np.zeros(3, np.float32))


def test_an_engine_that_dies_ends_every_stream_with_a_typed_error_and_comes_back(
    server: ServerProcess, spread: list[Client], modules: dict[str, torch.nn.Module], eventually: Eventually
) -> None:
    streams = [Steady(client, modules["lstm"], seed) for seed, client in enumerate(spread)]
    for stream in streams:
        assert stream.going.wait(30)
    pool = spread[0].pool("lstm", 3)
    pool.step(np.zeros((3, 3), np.float32))
    with grpc.insecure_channel(server.target) as channel:
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="lstm"))
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        (engine,) = processes(server, "engine")
        engine.send_signal(signal.SIGKILL)
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
    for stream in streams:
        stream.finish()  # every answer until then was right
        assert isinstance(stream.error, Unavailable)
        assert stream.error.reason == "ENGINE_LOST"
    with pytest.raises(StreamCellError) as caught:
        pool.step(np.zeros((3, 3), np.float32))
    assert caught.value.reason == "ENGINE_LOST"
    assert eventually(lambda: server.metric("streamcell_ready") == 1)
    assert server.metric("streamcell_process_restarts_total", kind="engine") == 1
    assert server.metric("streamcell_errors_total", reason="ENGINE_LOST") == len(streams) + 1
    assert server.metric("streamcell_slots_used") == 0
    for client in spread:  # the same connections
        with client.session("lstm") as session:
            x = noise(5, 3)
            np.testing.assert_allclose(session.run(x), truth(modules["lstm"], x), **TOLERANCE)


def test_while_there_is_no_engine_calls_are_told_so(
    serve: Callable[..., ServerProcess], models_dir: Path, tmp_path: Path, eventually: Eventually
) -> None:
    """The models' folder is gone when the engine is lost, so that it cannot come back before the folder does."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("lstm.onnx", "mlp.onnx"):
        os.link(models_dir / name, folder / name)
    with ServerProcess(folder, "--frontends", "2") as server, connect(server.target) as client:
        client.predict("mlp", np.zeros((1, 3), np.float32))
        hidden = folder.rename(tmp_path / "hidden")
        (engine,) = processes(server, "engine")
        engine.send_signal(signal.SIGKILL)
        assert eventually(lambda: server.metric("streamcell_ready") == 0)
        for call in (
            lambda: client.predict("mlp", np.zeros((1, 3), np.float32)),
            lambda: client.session("lstm").step(np.zeros(3, np.float32)),
            client.models,
        ):
            with pytest.raises(Unavailable) as caught:
                call()
            assert caught.value.reason == "ENGINE_LOST"
        assert server.metric("streamcell_processes", kind="frontend") == 2
        hidden.rename(folder)
        assert eventually(lambda: server.metric("streamcell_ready") == 1)
        assert client.session("lstm").step(np.zeros(3, np.float32)).shape == (2,)
        assert server.metric("streamcell_errors_total", reason="ENGINE_LOST") == 3


def test_ready_once_a_front_end_answers_calls(server: ServerProcess, eventually: Eventually) -> None:
    def ready() -> bool:
        try:
            with urllib.request.urlopen(
                server.metrics_url.replace("/metrics", "/readyz"), timeout=60
            ) as page:
                return bool(page.read() == b"ready\n")
        except urllib.error.HTTPError as refused:
            if refused.code != 503:
                raise
            return False

    before = processes(server, "frontend")
    for process in before:
        process.send_signal(signal.SIGKILL)
    assert eventually(lambda: len(set(processes(server, "frontend")) - set(before)) == 2)
    begun = [process for process in processes(server, "frontend") if process not in before]
    for process in begun:
        process.send_signal(signal.SIGSTOP)
    server.metrics()  # the engine process answers, so it has done what it was asked for: links, if any
    assert not ready()
    for process in begun:
        process.send_signal(signal.SIGCONT)
    assert eventually(ready)
    with connect(server.target) as client:
        assert client.models()


def test_messages_longer_than_a_ring_hold_up_nobody(
    server: ServerProcess, spread: list[Client], modules: dict[str, torch.nn.Module]
) -> None:
    """Messages of 4,096 timesteps, sent ahead on streams whose replies are read one stream after the other."""
    x = noise(4096, 3)
    wanted = truth(modules["lstm"], np.concatenate([x] * 6))
    done = threading.Event()
    steps = [0] * len(spread)

    def step(index: int) -> None:
        with spread[index].session("lstm") as session:
            while not done.is_set():
                session.step(np.zeros(3, np.float32))
                steps[index] += 1

    others = [threading.Thread(target=step, args=(index,)) for index in range(len(spread))]
    for other in others:
        other.start()
    requests = [
        pb.StreamRequest(open=pb.OpenSession(model="lstm")),
        *[pb.StreamRequest(inputs=[x.tobytes()])] * 6,
    ]
    with grpc.insecure_channel(server.target, options=[*APART.items()]) as channel:
        calls = [rpc.StreamCellStub(channel).Stream(iter(requests)) for _ in range(3)]  # type: ignore[no-untyped-call]
        for call in calls:
            replies = list(call)[1:]
            assert [reply.step_index for reply in replies] == [4096 * (index + 1) for index in range(6)]
            y = np.frombuffer(b"".join(reply.outputs[0] for reply in replies), np.float32).reshape(-1, 2)
            np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    done.set()
    for other in others:
        other.join(30)
    # Of 18 such messages each is 64 runs; who has one step gets past them between two runs.
    assert min(steps) > 18


def test_a_shutdown_ends_all_processes_and_sessions_with_a_typed_error(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("--grace-s", "0.3")
    children = psutil.Process(server.pid).children()
    assert len(children) == 3
    with ExitStack() as stack:
        clients = Spread(server, stack).clients
        sessions = [stack.enter_context(client.session("lstm")) for client in clients]
        for session in sessions:
            session.step(np.zeros(3, np.float32))
        assert server.stop() == 0
        for session in sessions:
            with pytest.raises(StreamCellError) as caught:
                session.step(np.zeros(3, np.float32))
            assert caught.value.reason == "SERVER_DRAINING"
    assert not any(child.is_running() for child in children)


def test_no_process_outlives_its_supervisor(
    serve: Callable[..., ServerProcess], eventually: Eventually
) -> None:
    server = serve()
    children = psutil.Process(server.pid).children()
    server.process.kill()
    server.process.wait()
    assert eventually(lambda: not any(child.is_running() for child in children))


def test_the_figures_of_all_processes_are_added_up(
    server: ServerProcess, spread: list[Client], program: Callable[[str], str]
) -> None:
    for client in spread:
        with client.session("lstm") as session:
            session.step(np.zeros(3, np.float32))
            session.send(np.full(3, np.nan, np.float32))
            with pytest.raises(StreamCellError):
                session.receive()
    assert server.metric("streamcell_steps_total") == len(spread)
    assert server.metric("streamcell_errors_total", reason="NON_FINITE_INPUT") == len(spread)
    assert server.metric("streamcell_sessions_ended_total", reason="non_finite_input") == len(spread)
    assert server.metric("streamcell_processes", kind="engine") == 1
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    memory = sum(process.memory_info().rss for process in family)
    assert server.metric("process_resident_memory_bytes") == pytest.approx(memory, rel=0.05)
    assert server.metric("process_cpu_seconds_total") > max(
        sum(process.cpu_times()[:2]) for process in family
    )
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=server.metrics(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_port_that_is_taken_is_refused_even_by_another_server_with_front_ends(
    server: ServerProcess, models_dir: Path
) -> None:
    port = server.target.split(":")[1]
    second = ServerProcess(models_dir, "--frontends", "1", "--port", port)
    with pytest.raises(ServerProcessError, match=f"cannot listen on 127.0.0.1:{port}"):
        second.wait_until_up()
    assert second.stop() == 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        third = ServerProcess(models_dir, "--frontends", "1", "--port", str(taken.getsockname()[1]))
        with pytest.raises(ServerProcessError, match="cannot listen on"):
            third.wait_until_up()
        assert third.stop() == 1


def test_models_that_cannot_be_served_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"this is not a model")
    server = ServerProcess(tmp_path, "--frontends", "1")
    with pytest.raises(ServerProcessError, match=r"broken\.onnx"):
        server.wait_until_up()
    assert server.stop() == 1


def test_a_front_end_loads_nothing_that_runs_models() -> None:
    code = (
        "import sys, streamcell.service.processes.frontend.main;"
        "sys.exit(bool({'onnx', 'onnxruntime', 'torch'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
