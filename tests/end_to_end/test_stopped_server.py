"""A server that is stopped and goes on: nobody's session expires for what the server has not read."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from streamcell.proto.inference import oip
from streamcell.proto.inference import rpc as oip_rpc

SESSIONS = 12
IDLE_S, STOPPED_S = 4.0, 5.0  # a busy machine opens all sessions in less
STEP = pb.StreamRequest(inputs=[bytes(12)])


class Talk:
    """One stream, whose client sends when it is told to."""

    def __init__(self, stub: Any, first: Any, then: Any) -> None:
        self.sent: queue.Queue[Any] = queue.Queue()
        self.then = then
        self.answers = stub(iter(self.sent.get, None), timeout=120)
        self.sent.put(first)

    def send(self) -> None:
        self.sent.put(self.then)

    def close(self) -> None:
        self.sent.put(None)


def request(sequence: int, *, start: bool = False) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name="lstm", raw_input_contents=[bytes(12)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1, 3])
    message.parameters["sequence_id"].int64_param = sequence
    message.parameters["sequence_start"].bool_param = start
    return message


def parts(server: ServerProcess, which: str) -> list[psutil.Process]:
    """The processes of a server: "all", or those whose name has `which` in it."""
    process = psutil.Process(server.pid)
    found = [process, *process.children()]
    return [each for each in found if which == "all" or any(which in word for word in each.cmdline())]


@pytest.mark.parametrize(
    ("processes", "which"),
    [("0", "all"), ("2", "all"), ("2", "processes.engine"), ("2", "processes.frontend")],
)
def test_messages_that_waited_while_the_server_was_stopped_find_their_sessions(
    processes: str,
    which: str,
    start_server: Callable[..., ServerProcess],
    models_dir: Path,
) -> None:
    server = start_server(models_dir, "--idle-timeout-s", str(IDLE_S), STREAMCELL_FRONTENDS=processes)
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(server.target))
        stub, open_inference = rpc.StreamCellStub(channel), oip_rpc.GRPCInferenceServiceStub(channel)
        opening = pb.StreamRequest(open=pb.OpenSession(model="lstm"))
        talks = [Talk(stub.Stream, opening, STEP) for _ in range(SESSIONS)]
        talks += [
            Talk(open_inference.ModelStreamInfer, request(number, start=True), request(number))
            for number in range(1, SESSIONS + 1)
        ]
        for talk in talks:
            stack.callback(talk.close)
        for talk in talks:
            next(talk.answers)
        stopped = parts(server, which)
        assert stopped
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        try:
            for talk in talks:
                talk.send()
            time.sleep(STOPPED_S)  # longer than a session may be idle
        finally:
            for process in reversed(stopped):
                process.send_signal(signal.SIGCONT)
        for talk in talks:
            answer = next(talk.answers)
            assert not getattr(answer, "error_message", ""), answer
        # And who really is idle still expires.
        for talk in talks[:SESSIONS]:
            with pytest.raises(grpc.RpcError, match="has expired"):
                next(talk.answers)
