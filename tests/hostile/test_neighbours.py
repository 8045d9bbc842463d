"""Whatever an attacker sends, its neighbours are answered as ONNX Runtime would, and it never sees a byte of theirs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from streamcell.proto.inference import oip, rpc

from .attack import Attacker
from .honest import CLIENTS, ECHO, echo_model

COUNT = 1200  # broken messages, over two attackers


@pytest.fixture(scope="module")
def hostile_models(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copy(models_dir / "lstm.onnx", folder)
    echo_model(folder)
    return folder


@pytest.fixture(scope="module")
def server(start_server: Any, hostile_models: Path) -> Any:
    return start_server(hostile_models, "--max-chunk", "16", "--max-sessions", "64")


@pytest.mark.conformance
def test_broken_messages_harm_nobody_else(server: Any, hostile_models: Path) -> None:
    honest = [kind(server.target, hostile_models, seed) for seed, kind in enumerate(CLIENTS)]
    attackers = [Attacker(server.target, seed, COUNT // 2) for seed in (11, 12)]
    for thread in (*honest, *attackers):
        thread.start()
    for attacker in attackers:
        attacker.join()
    for client in honest:
        client.going = False
    for client in honest:
        client.join(60)
    assert not [each for attacker in attackers for each in attacker.found]
    assert not [client.wrong for client in honest if client.wrong]
    assert not any(client.is_alive() for client in honest)
    assert all(client.exchanges > 5 for client in honest)
    # They were let in, and they were turned away: both sides of every check were walked.
    assert all(attacker.accepted > 20 and attacker.refused > 100 for attacker in attackers)
    assert not [line for line in server.log if line.get("level") in ("error", "critical")
                and "DecodeError" not in line.get("exception", "")]  # fmt: skip


@pytest.mark.parametrize("by", [-32, -4, 4, 32])
def test_a_request_that_is_cut_short_or_too_long_is_refused_typed(server: Any, by: int) -> None:
    """The recorded fault: requests like earlier ones but for their last bytes were taken for whole ones."""
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for steps in (1, 2, 3):
            x = np.full((1, steps, ECHO), 3, np.float32)
            message = oip.ModelInferRequest(model_name="echo", raw_input_contents=[x.tobytes()])
            message.inputs.add(name="x", datatype="FP32", shape=x.shape)
            for _ in range(2):
                assert stub.ModelInfer(message, timeout=60).raw_output_contents[0] == x.tobytes()
            whole = message.SerializeToString()
            with pytest.raises(grpc.RpcError) as caught:
                send(whole[:by] if by < 0 else whole + bytes(by), timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
