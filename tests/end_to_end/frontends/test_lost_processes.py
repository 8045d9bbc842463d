"""What happens if a process of a server with front ends is killed, hangs or ends."""

from __future__ import annotations

import os
import signal
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
from streamcell.client.errors import Unavailable
from streamcell.client.local_server import ServerProcess
from tests.support.arrays import noise, truth
from tests.support.frontends import FLAGS, TOLERANCE, Eventually, Spread, processes
from tests.support.waiting import waited


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
        np.testing.assert_allclose(
            np.stack(self._y), truth(self._module, self._x[None, :steps])[0], **TOLERANCE
        )


@pytest.fixture
def server(serve: Callable[..., ServerProcess]) -> ServerProcess:
    """One for each test, for the tests kill its processes."""
    return serve(*FLAGS)


@pytest.fixture
def spread(server: ServerProcess) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        yield Spread(server, stack).clients


def test_a_front_end_that_dies_takes_only_its_own_streams_along(
    server: ServerProcess, spread: list[Client], modules: dict[str, torch.nn.Module], eventually: Eventually
) -> None:
    streams = [Steady(client, modules["lstm"], seed) for seed, client in enumerate(spread)]
    for stream in streams:
        assert stream.going.wait(60)
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
        assert stream.going.wait(60)
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
    assert waited(lambda: server.metric("streamcell_process_restarts_total", kind="engine") == 1)
    assert waited(lambda: server.metric("streamcell_errors_total", reason="ENGINE_LOST") == len(streams) + 1)
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)
    for client in spread:  # the same connections
        with client.session("lstm") as session:
            x = noise(5, 3)
            np.testing.assert_allclose(session.run(x), truth(modules["lstm"], x[None])[0], **TOLERANCE)


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
        assert waited(lambda: server.metric("streamcell_errors_total", reason="ENGINE_LOST") == 3)


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
    begun: list[psutil.Process] = []

    def stopped() -> bool:
        """Stop each new front end at once, long before it answers."""
        for process in processes(server, "frontend"):
            if process not in (*before, *begun):
                process.send_signal(signal.SIGSTOP)
                begun.append(process)
        return len(begun) == 2

    assert eventually(stopped)
    server.metrics()  # the engine process answers, so it has done what it was asked for: links, if any
    assert not ready()
    for process in begun:
        process.send_signal(signal.SIGCONT)
    assert eventually(ready)
    with connect(server.target) as client:
        assert client.models()


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
