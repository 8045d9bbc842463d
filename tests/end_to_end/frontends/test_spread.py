"""Several processes as one server: sessions spread over front ends, limits and figures for all of them.

That a server with front ends does what one process does is held by the tests that are marked `conformance`.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import torch

from streamcell.client import Client, StreamCellError, connect
from streamcell.client.errors import SessionLimit
from streamcell.client.local_server import ServerProcess, ServerProcessError
from streamcell.proto import pb, rpc
from tests.support.arrays import noise, truth
from tests.support.frontends import APART, SESSIONS, TOLERANCE, Eventually
from tests.support.waiting import waited


def test_sessions_of_all_front_ends_share_batches_and_equal_pytorch(
    server: ServerProcess, spread: list[Client], modules: dict[str, torch.nn.Module]
) -> None:
    """Steps, chunks longer than a run, and pipelined messages, from every front end at once."""
    before = server.metric("streamcell_steps_total", model="lstm")
    x = noise(SESSIONS, 200, 3)
    y = np.zeros((SESSIONS, 200, 2), np.float32)
    start = threading.Barrier(SESSIONS)

    def run(index: int) -> None:
        mine = x[index]
        with spread[index % len(spread)].session("lstm") as session:
            start.wait(60)
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
    np.testing.assert_allclose(y, truth(modules["lstm"], x), **TOLERANCE)
    assert waited(lambda: server.metric("streamcell_steps_total", model="lstm") - before == SESSIONS * 200)
    assert server.metric("streamcell_chunks_total") > server.metric("streamcell_batch_rows_count")


def test_the_bound_on_sessions_is_one_for_all_front_ends(
    server: ServerProcess, spread: list[Client], eventually: Eventually
) -> None:
    assert eventually(lambda: server.metric("streamcell_slots_used") == 0)  # others' sessions have ended
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(spread[index % len(spread)].session("lstm")) for index in range(SESSIONS)
        ]
        for session in sessions:
            session.step(np.zeros(3, np.float32))
        for client in spread:
            with pytest.raises(SessionLimit), client.session("lstm") as session:
                session.step(np.zeros(3, np.float32))
        assert waited(lambda: server.metric("streamcell_slots_used", model="lstm") == SESSIONS)
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


def test_idle_sessions_expire(serve: Callable[..., ServerProcess], eventually: Eventually) -> None:
    server = serve("--idle-timeout-s", "3")
    with connect(server.target) as client, client.session("lstm") as session:
        session.step(np.zeros(3, np.float32))
        ended = {"model": "lstm", "reason": "session_expired"}
        assert eventually(lambda: server.metric("streamcell_sessions_ended_total", **ended) == 1)
        with pytest.raises(StreamCellError) as caught:
            session.step(np.zeros(3, np.float32))
        assert caught.value.reason == "SESSION_EXPIRED"
        assert int(caught.value.metadata["step_index"]) == 1


def test_messages_longer_than_a_ring_hold_up_nobody(
    server: ServerProcess, spread: list[Client], modules: dict[str, torch.nn.Module]
) -> None:
    """Messages of 4,096 timesteps, sent ahead on streams whose replies are read one stream after the other."""
    x = noise(4096, 3)
    wanted = truth(modules["lstm"], np.concatenate([x] * 6)[None])[0]
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
        other.join(60)
    # Of 18 such messages each is 64 runs; who has one step gets past them between two runs.
    assert min(steps) > 18


def test_the_figures_of_all_processes_are_added_up(
    server: ServerProcess, spread: list[Client], program: Callable[[str], str]
) -> None:
    def figures() -> list[float]:
        return [
            server.metric("streamcell_steps_total"),
            server.metric("streamcell_errors_total", reason="NON_FINITE_INPUT"),
            server.metric("streamcell_sessions_ended_total", reason="non_finite_input"),
        ]

    before = figures()
    for client in spread:
        with client.session("lstm") as session:
            session.step(np.zeros(3, np.float32))
            session.send(np.full(3, np.nan, np.float32))
            with pytest.raises(StreamCellError):
                session.receive()
    assert waited(lambda: figures() == [count + len(spread) for count in before])
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
