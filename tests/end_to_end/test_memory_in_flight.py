"""What clients have in the server's memory stays in bounds, whatever they do; who does no harm is answered right."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import torch

from streamcell.benchmarks.load.raw_http2 import RawConnection, message
from streamcell.client.local_server import ServerProcess
from streamcell.export import export_model
from streamcell.models import build
from streamcell.proto import pb, rpc

pytestmark = pytest.mark.alone

MIB = 1024 * 1024
BOUND, CONNECTION = 96 * MIB, 48 * MIB
# What a process takes beside: messages on their way, copies of them, and what malloc keeps.
SLACK = 160 * MIB
STREAM = "/streamcell.v1.StreamCell/Stream"
WIDE = 32
OPEN = pb.StreamRequest(open=pb.OpenSession(model="lstm")).SerializeToString()
Serve = Callable[..., ServerProcess]
Eventually = Callable[[Callable[[], bool]], bool]


@pytest.fixture(scope="module")
def models(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that computes little for many bytes, beside a usual one."""
    folder = tmp_path_factory.mktemp("wide")
    shutil.copy(models_dir / "lstm.onnx", folder)
    wide = {"kind": "lstm", "input_size": WIDE, "hidden_size": 16, "output_size": 1, "num_layers": 1}
    export_model(build(wide).eval(), folder / "wide.onnx", name="wide")
    return folder


@pytest.fixture(scope="module", params=[pytest.param("fast", marks=pytest.mark.conformance), "threaded"])
def server(request: pytest.FixtureRequest, start_server: Serve, models: Path) -> ServerProcess:
    return start_server(
        models, "--lane", request.param, "--max-in-flight-bytes", str(BOUND), "--max-connection-bytes",
        str(CONNECTION), "--max-steps-per-message", "400000",
    )  # fmt: skip


def memory(processes: list[psutil.Process]) -> int:
    return sum(each.memory_info().rss for each in processes)


@contextmanager
def watched(server: ServerProcess, modules: dict[str, torch.nn.Module], slack: int = SLACK) -> Iterator[None]:
    """Within, the server's memory stays in bounds and an honest client's answers are right."""
    stop, most = threading.Event(), [0]
    process = psutil.Process(server.pid)
    processes = [process, *process.children()]  # found once: finding them takes longer than a look
    before = memory(processes)
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    with torch.no_grad():
        expected = modules["lstm"](torch.from_numpy(x)[None])[0][0].numpy()
    answers: list[np.ndarray] = []

    def look() -> None:
        while not stop.wait(0.02):
            most[0] = max(most[0], memory(processes))

    def sent() -> Iterator[pb.StreamRequest]:
        yield pb.StreamRequest(open=pb.OpenSession(model="lstm"))
        for step in x[:-1]:
            yield pb.StreamRequest(inputs=[step.tobytes()])
            stop.wait(0.02)
        stop.wait(60)
        yield pb.StreamRequest(inputs=[x[-1].tobytes()])

    def honest() -> None:
        with grpc.insecure_channel(server.target) as channel:
            for reply in rpc.StreamCellStub(channel).Stream(sent(), timeout=120):
                answers.extend(np.frombuffer(data, np.float32) for data in reply.outputs)

    threads = [threading.Thread(target=look), threading.Thread(target=honest)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert most[0] - before < BOUND + slack, f"{(most[0] - before) / MIB:.0f} MiB"
    np.testing.assert_allclose(np.stack(answers), expected, rtol=1e-5, atol=1e-5)


def ended_for_memory(server: ServerProcess) -> float:
    return server.metric("streamcell_errors_total", reason="MEMORY_IN_FLIGHT")


def test_messages_that_are_never_whole(
    server: ServerProcess, modules: dict[str, torch.nn.Module], eventually: Eventually
) -> None:
    before = ended_for_memory(server)
    part = message(bytes(4 * MIB - 4096), announced=4 * MIB - 1024)  # whole it would be as large as may be
    # All that is sent is 800 MiB, and much of it comes while a busy machine holds up the thread that looks.
    with watched(server, modules, 2 * SLACK), RawConnection(server.target) as connection:
        streams = [connection.open(STREAM) for _ in range(200)]
        for at, stream in enumerate(streams):
            if at % 2:  # half of them have had a message before
                connection.send(stream, message(OPEN))
        for stream in streams:
            connection.send(stream, part, patience_s=0.2)
        assert eventually(lambda: ended_for_memory(server) > before)
        texts = [each for each in connection.ended.values() if b"memory" in each]
        assert texts
        assert eventually(lambda: server.metric("streamcell_sessions", model="lstm") <= 1)


def test_clients_that_read_no_replies(
    server: ServerProcess, modules: dict[str, torch.nn.Module], eventually: Eventually
) -> None:
    before = ended_for_memory(server)
    # 12 bytes a timestep in, 8 out; 2 MiB a reply.
    steps = message(pb.StreamRequest(inputs=[bytes(12 * 262_144)]).SerializeToString())
    with watched(server, modules), RawConnection(server.target, window=0) as connection:
        ended = lambda: ended_for_memory(server) > before  # noqa: E731
        for _ in range(24):
            stream, left = connection.open(STREAM), message(OPEN) + steps
            while left and not ended():  # it is not read for moments before somebody is ended
                left = left[connection.send(stream, left, patience_s=0.1) :]
            for _ in range(2):
                connection.send(stream, steps, patience_s=0.1)
        assert eventually(ended) or eventually(ended)  # the model computes 19 million steps first
        assert any(b"memory" in each for each in connection.ended.values()) or server.log


def test_metrics_tell_what_unread_replies_take(server: ServerProcess, eventually: Eventually) -> None:
    """Less than a connection may have, so that it stays; with front ends it is one of them that tells."""
    steps = message(pb.StreamRequest(inputs=[bytes(12 * 262_144)]).SerializeToString())
    with RawConnection(server.target, window=0) as connection:
        for _ in range(2):
            stream = connection.open(STREAM)
            connection.send(stream, message(OPEN))
            connection.send(stream, steps, patience_s=0.1)
        assert eventually(lambda: server.metric("streamcell_in_flight_bytes") > 2 * MIB)
    assert eventually(lambda: server.metric("streamcell_in_flight_bytes") < MIB)


def test_calls_that_ended_early_are_not_held_against_those_that_live(
    server: ServerProcess, modules: dict[str, torch.nn.Module], eventually: Eventually
) -> None:
    before = ended_for_memory(server)
    opening = message(OPEN)
    with watched(server, modules), RawConnection(server.target) as connection:
        idle = [connection.open(STREAM) for _ in range(24)]
        for stream in idle:
            connection.send(stream, opening)
        assert eventually(lambda: server.metric("streamcell_sessions", model="lstm") > 24)
        steps = message(pb.StreamRequest(inputs=[bytes(12 * 2700)]).SerializeToString())
        for _ in range(2000):  # 65 MB
            stream = connection.open(STREAM)
            assert connection.send(stream, opening + steps, patience_s=60) == len(opening + steps)
            connection.reset([stream])
        large = message(pb.StreamRequest(inputs=[bytes(12 * 262_144)]).SerializeToString())
        for stream in idle[:4]:
            assert connection.send(stream, large, patience_s=60) == len(large)
        assert not set(idle) & set(connection.ended)
    assert ended_for_memory(server) == before


def test_clients_that_send_far_ahead_are_held_back_and_all_answered(
    server: ServerProcess, modules: dict[str, torch.nn.Module]
) -> None:
    before = ended_for_memory(server)
    # 400 MB, which a session's queue of 32 messages would all take; a connection may have 48 MiB.
    rows, messages, streams = MIB // (4 * WIDE), 16, 24
    x = np.zeros((rows, WIDE), np.float32)

    def sent() -> Iterator[pb.StreamRequest]:
        yield pb.StreamRequest(open=pb.OpenSession(model="wide", output_mode=pb.OUTPUT_MODE_LAST))
        for _ in range(messages):
            yield pb.StreamRequest(inputs=[x.tobytes()])

    with watched(server, modules), grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        calls = [stub.Stream(sent(), timeout=300) for _ in range(streams)]
        for call in calls:
            assert [reply.step_index for reply in call][-1] == rows * messages
    assert ended_for_memory(server) == before


def test_windows_of_many_streams_do_not_keep_a_connection_from_being_read(
    start_server: Serve, models_dir: Path
) -> None:
    # What 24 streams may send before they are read is more than the connection may have.
    server = start_server(
        models_dir, "--max-in-flight-bytes", str(2 * MIB), "--max-connection-bytes", str(MIB)
    )
    rows, messages, streams = 4096, 32, 24
    x = np.zeros((rows, 3), np.float32)

    def sent() -> Iterator[pb.StreamRequest]:
        yield pb.StreamRequest(open=pb.OpenSession(model="lstm", output_mode=pb.OUTPUT_MODE_LAST))
        for _ in range(messages):
            yield pb.StreamRequest(inputs=[x.tobytes()])

    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        calls = [stub.Stream(sent(), timeout=120) for _ in range(streams)]
        for call in calls:
            assert [reply.step_index for reply in call][-1] == rows * messages
    assert ended_for_memory(server) == 0
