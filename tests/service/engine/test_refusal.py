"""A model whose run fails on what one session sent: only that session is refused, for its rows are run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from streamcell.client import connect
from streamcell.client.errors import InvalidInput, RowsRefused
from streamcell.export import export_model
from streamcell.models import build
from streamcell.proto import pb, rpc
from tests.support.waiting import waited

TOKENS, WIDTH = 10, 4
TABLE = np.random.default_rng(5).standard_normal((TOKENS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def server(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Serves n' = n + 1, h' = h + table[token], y = [h', n'], described by a sidecar.

    The counter does not depend on the token: written before the run fails, it would count a row's second run too.
    """
    folder = tmp_path_factory.mktemp("embedding")
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["n", "one"], ["n_next"]),
            # An index that cannot be traced to an input: only the run itself finds that the table has no such row.
            helper.make_node("Mul", ["token", "once"], ["row"]),
            helper.make_node("Gather", ["table", "row"], ["e"]),
            helper.make_node("Add", ["h", "e"], ["h_next"]),
            helper.make_node("Concat", ["h_next", "n_next"], ["y"], axis=1),
        ],
        "embedding",
        [
            helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("n", floats, ["batch", 1]),
            helper.make_tensor_value_info("h", floats, ["batch", WIDTH]),
        ],
        [
            helper.make_tensor_value_info("y", floats, ["batch", WIDTH + 1]),
            helper.make_tensor_value_info("n_next", floats, ["batch", 1]),
            helper.make_tensor_value_info("h_next", floats, ["batch", WIDTH]),
        ],
        [
            numpy_helper.from_array(TABLE, "table"),
            numpy_helper.from_array(np.ones(1, np.float32), "one"),
            numpy_helper.from_array(np.ones(1, np.int64), "once"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "sum.onnx")
    (folder / "sum.toml").write_text(
        'layout = "batch"\ninputs = [{ name = "token" }]\noutputs = [{ name = "y" }]\n'
        '[[states]]\ninput = "h"\noutput = "h_next"\n[[states]]\ninput = "n"\noutput = "n_next"\n'
    )
    return start_server(folder)


def tokens(*values: int) -> pb.StreamRequest:
    return pb.StreamRequest(inputs=[np.array(values, "<i8").tobytes()])


def sums(row: np.ndarray) -> np.ndarray:
    """What the model gives for a whole sequence."""
    return np.column_stack([np.cumsum(TABLE[row], axis=0), np.arange(1, len(row) + 1)])


OPEN = pb.StreamRequest(open=pb.OpenSession(model="sum"))


@pytest.mark.conformance
def test_only_the_session_that_sent_it_is_refused_whatever_else_was_in_the_run(server: Any) -> None:
    """The bad token rides with good ones in single runs: Predict puts all its rows into the queue at once."""
    sequences, steps = 40, 25
    good = np.random.default_rng(0).integers(0, TOKENS, (sequences, steps))
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        calls = [stub.Stream(iter([OPEN, *(tokens(int(t)) for t in row)])) for row in good]
        bad = [stub.Stream(iter([OPEN, tokens(3), tokens(TOKENS), tokens(1)])) for _ in range(20)]
        for row, call in zip(good, calls, strict=True):
            _, *replies = call
            got = np.array([np.frombuffer(reply.outputs[0], "<f4") for reply in replies])
            np.testing.assert_allclose(got, sums(row), rtol=1e-5, atol=1e-5)
        for call in bad:
            answered = []
            with pytest.raises(grpc.RpcError):
                answered.extend(iter(call))
            assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "cannot run this message: indices element out of data bounds" in call.details()
    assert waited(lambda: server.metric("streamcell_errors_total", reason="REFUSED_BY_MODEL") == 20)
    assert waited(lambda: server.metric("streamcell_sessions_ended_total", reason="refused_by_model") == 20)
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)


def test_a_refused_row_of_predict_fails_its_call_and_leaves_no_slot_taken(server: Any) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        rows = np.array([[1, 2], [3, -TOKENS - 1], [4, 5]], "<i8")
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(pb.PredictRequest(model="sum", inputs=[rows.tobytes()], batch=3))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        fine = stub.Predict(pb.PredictRequest(model="sum", inputs=[rows[:1].tobytes()]))
        got = np.frombuffer(fine.outputs[0], "<f4").reshape(2, WIDTH + 1)
        np.testing.assert_allclose(got, sums(rows[0]), rtol=1e-5)
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)


def test_a_refused_token_does_not_stay_behind_in_padding(start_server: Any, tmp_path: Path) -> None:
    """Where shapes are fixed, a shorter message is padded with what an earlier one may have left."""
    torch.manual_seed(1)
    config = {"kind": "seq2seq", "input_size": TOKENS, "hidden_size": 8, "output_size": 4}
    export_model(build(config).eval(), tmp_path / "spell.onnx", name="spell")
    server = start_server(tmp_path, "--fixed-shapes")
    with connect(server.target) as client, client.pool("spell", 2) as pool, client.session("spell") as good:
        for _ in range(2):
            with client.session("spell") as bad, pytest.raises(InvalidInput) as caught:
                bad.run(np.array([1, 2, 3, TOKENS]))
            assert caught.value.reason == "INDEX_OUT_OF_RANGE"
            assert good.run(np.array([1, 2, 3])).shape == (3, 4)
            with pytest.raises(RowsRefused) as refused:
                pool.run(np.array([[1, 2, 3, TOKENS], [1, 2, 3, 4]]))
            assert list(refused.value.errors) == [0]
            assert pool.run(np.array([[1, 2, 3], [3, 2, 1]])).shape == (2, 3, 4)
