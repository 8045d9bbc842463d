"""A server on the lane of threads does what one on the fast lane does: one test for each kind of call.

The other tests of servers run on the fast lane. `tests/service/transport/lane/` holds the lanes to each other,
call by call.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from streamcell.card import Generation
from streamcell.client import Client, SessionClosed, connect
from streamcell.client.errors import InvalidInput, RowsRefused
from streamcell.export import export_model
from streamcell.models import GRU
from streamcell.proto import pb, rpc
from streamcell.proto.inference import oip
from streamcell.proto.inference import rpc as oip_rpc
from tests.support import every_method
from tests.support.arrays import noise, truth
from tests.support.every_method import METHODS

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
CLASSES = 9
WIDE = 1024  # few replies fill what gRPC sends ahead


@pytest.fixture(scope="module")
def words() -> torch.nn.Module:
    """A model that generates."""
    torch.manual_seed(11)
    model = GRU(CLASSES, 16, output_size=CLASSES, distribution="categorical_logits")
    with torch.no_grad():  # outputs far enough from each other that a choice is a choice
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.eval()


@pytest.fixture(scope="module")
def server(
    words: torch.nn.Module, models_dir: Path, start_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    folder = tmp_path_factory.mktemp("threaded")
    (folder / "lstm.onnx").write_bytes((models_dir / "lstm.onnx").read_bytes())
    head = Generation(output="y", input="x", head="categorical", stop=CLASSES - 1)
    export_model(words, folder / "words.onnx", generation=head)
    wide = GRU(WIDE, 2, output_size=WIDE, distribution="bernoulli_logits")
    export_model(wide.eval(), folder / "wide.onnx")
    endless = ("--max-generate-steps", str(2**30), "--queue-messages", "4")
    server = start_server(folder, "--lane", "threaded", *endless, *every_method.FLAGS)
    assert server.metric("streamcell_lane_info", lane="threaded") == 1
    return server


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with connect(server.target) as client:
        yield client


@pytest.fixture
def connected(server: Any) -> Iterator[grpc.Channel]:
    with every_method.apart(server.target) as channel:
        yield channel


def test_sessions_pools_and_predictions_equal_pytorch(
    client: Client, modules: dict[str, torch.nn.Module]
) -> None:
    x = noise(3, 40, 3)
    y = truth(modules["lstm"], x)
    with client.session("lstm") as session, client.pool("lstm", 3) as pool:
        for t in range(5):
            np.testing.assert_allclose(session.step(x[0, t]), y[0, t], **TOLERANCE)
            np.testing.assert_allclose(pool.step(x[:, t]), y[:, t], **TOLERANCE)
        np.testing.assert_allclose(session.run(x[0, 5:20]), y[0, 5:20], **TOLERANCE)
        streamed = list(session.stream(x[0, 20:], window=16))
        np.testing.assert_allclose(streamed, y[0, 20:], **TOLERANCE)
    np.testing.assert_allclose(client.predict("lstm", x), y, **TOLERANCE)


def test_a_bad_step_a_bad_row_and_a_closed_session_are_told_as_such(client: Client) -> None:
    x = noise(4, 3)
    x[2, 1] = np.nan
    with client.session("lstm") as session, pytest.raises(InvalidInput) as caught:
        session.run(x)
    assert caught.value.reason == "NON_FINITE_INPUT"
    with client.pool("lstm", 4) as pool:
        with pytest.raises(RowsRefused) as refused:
            pool.step(x)
        assert {row: error.reason for row, error in refused.value.errors.items()} == {2: "NON_FINITE_INPUT"}
    with client.session("lstm") as session:
        assert client.close_session(session.id) == 0
        with pytest.raises(SessionClosed):
            session.step(x[0])


def test_generations_and_searches_choose_what_pytorch_chooses(client: Client, words: torch.nn.Module) -> None:
    hot = np.eye(CLASSES, dtype=np.float32)
    with client.session("words") as session:
        session.step(hot[2])
        greedy = session.generate(20, stop=()).all()
        with torch.no_grad():
            fed = np.concatenate([hot[None, 2], greedy.fed])
            y = words(torch.from_numpy(fed[None]))[0][0].numpy()
        np.testing.assert_array_equal(greedy.chosen, y[1:].argmax(-1))
        np.testing.assert_array_equal(greedy.fed[1:], hot[greedy.chosen[:-1]])
        stopped = session.generate(2**30, stop=())
        next(stopped)
        stopped.stop()
        for _ in stopped:
            pass
        assert stopped.stop_reason == "request"
        narrow = session.beam_search(8, width=1, stop=())
        again = session.generate(7, stop=()).all()
        assert list(narrow[0].classes) == [int(again.fed[0].argmax()), *again.chosen.tolist()]


def test_a_client_that_does_not_read_holds_its_generation_up_and_then_gets_every_step(
    server: Any, connected: grpc.Channel, eventually: Any
) -> None:
    def generated() -> float:
        steps: float = server.metric("streamcell_generated_steps_total", model="wide")
        return steps

    feed: list[pb.StreamRequest] = [
        pb.StreamRequest(open=pb.OpenSession(model="wide"), inputs=[bytes(4 * WIDE)]),
        pb.StreamRequest(generate=pb.Generate(steps=2**30, no_stop=True)),
    ]
    before = generated()
    call = rpc.StreamCellStub(connected).Stream(iter(feed))
    seen = [before]

    def stands() -> bool:
        seen.append(generated())
        return seen[-1] == seen[-2] > before

    assert eventually(stands)
    indices = [next(call).step_index for _ in range(3000)]
    assert indices == [*range(1, 3001)]
    call.cancel()
    assert eventually(lambda: server.metric("streamcell_slots_used", model="wide") == 0)


def test_sequences_of_the_open_inference_protocol_are_answered_in_order(
    connected: grpc.Channel, modules: dict[str, torch.nn.Module]
) -> None:
    x = noise(16, 8, 3)

    def request(row: np.ndarray, name: str, sequence: int = 0, **flags: bool) -> oip.ModelInferRequest:
        message = oip.ModelInferRequest(model_name="lstm", id=name, raw_input_contents=[row.tobytes()])
        message.inputs.add(name="x", datatype="FP32", shape=row.shape)
        message.parameters["sequence_id"].int64_param = sequence
        for flag, value in flags.items():
            message.parameters[flag].bool_param = value
        return message

    requests = [
        request(x[s, t : t + 1], f"{s}/{t}", s + 1, sequence_start=t == 0, sequence_end=t == 7)
        for t in range(8)
        for s in range(16)
    ]
    requests.insert(40, request(x[0, :1], "bad", 99))
    stub = oip_rpc.GRPCInferenceServiceStub(connected)  # type: ignore[no-untyped-call]
    replies = list(stub.ModelStreamInfer(iter(requests)))
    assert [reply.infer_response.id for reply in replies] == [each.id for each in requests]
    assert "must specify the START flag" in replies.pop(40).error_message
    y = np.stack([np.frombuffer(reply.infer_response.raw_output_contents[0], "<f4") for reply in replies])
    np.testing.assert_allclose(y.reshape(8, 16, 2).swapaxes(0, 1), truth(modules["lstm"], x), **TOLERANCE)
    asked = (("triton_grpc_error", "true"),)
    with pytest.raises(grpc.RpcError, match="must specify the START flag"):
        list(stub.ModelStreamInfer(iter([request(x[0, :1], "bad", 99)]), metadata=asked))
    whole = stub.ModelInfer(request(x[0], "whole"))
    found = np.frombuffer(whole.raw_output_contents[0], "<f4").reshape(8, 2)
    np.testing.assert_allclose(found, truth(modules["lstm"], x[:1])[0], **TOLERANCE)


def test_every_method_refuses_what_is_no_message_what_is_too_long_and_silence(
    connected: grpc.Channel,
) -> None:
    for method in METHODS:
        every_method.tells_of_bytes_that_are_no_message(connected, method)
        every_method.has_its_own_limit(connected, method)
    every_method.all_are_ended_if_they_send_nothing(connected)
