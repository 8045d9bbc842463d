"""An index that no table has is refused before the batch runs, whichever way it came; its neighbours run together."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from google.rpc import error_details_pb2, status_pb2

from streamcell.client import connect
from streamcell.client.errors import InvalidInput, RowsRefused
from streamcell.proto import pb, rpc
from tests.support.onnx_files import parsed, save
from tests.support.waiting import waited

TOKENS, CHUNK = 10, 4
TABLE = np.random.default_rng(5).standard_normal((TOKENS, 3)).astype(np.float32)
SIDECAR = """
layout = "batch_time"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "h"
output = "h_next"
"""


@pytest.fixture(scope="module")
def server(start_server: Any, tmp_path_factory: Any) -> Any:
    """Serves h' = h + the sum of the table's rows, y = those rows: a wrapped index would show in both."""
    folder = tmp_path_factory.mktemp("tokens")
    model = parsed(
        "(int64[n, t] x, float[n, 3] h) => (float[n, t, 3] y, float[n, 3] h_next)"
        " { y = Gather(table, x) s = ReduceSum <keepdims = 0> (y, one) h_next = Add(h, s) }",
        table=TABLE, one=np.array([1]),
    )  # fmt: skip
    save(model, folder / "rows.onnx", SIDECAR)
    return start_server(folder, "--max-chunk", str(CHUNK))


def reason_of(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    rich = status_pb2.Status()
    rich.ParseFromString(dict(error.trailing_metadata())["grpc-status-details-bin"])  # type: ignore[attr-defined]
    info = error_details_pb2.ErrorInfo()
    rich.details[0].Unpack(info)
    return info


def count_runs(server: Any) -> float:
    return float(server.metric("streamcell_batch_rows_count"))


@pytest.mark.parametrize(
    "bad", [pytest.param(-1, marks=pytest.mark.conformance), TOKENS, -(2**63), 2**63 - 1]
)
def test_a_session_is_refused_by_name_value_and_range(server: Any, bad: int) -> None:
    with connect(server.target) as client, client.session("rows") as good:
        with client.session("rows") as session:
            np.testing.assert_array_equal(session.run(np.array([1, 2])), TABLE[[1, 2]])
            with pytest.raises(InvalidInput) as caught:
                session.run(np.array([3, bad, 4]))
        assert caught.value.reason == "INDEX_OUT_OF_RANGE"
        assert f"input 'x': expected an index from 0 to 9, got {bad} at step 1, element 0" in str(
            caught.value
        )
        assert caught.value.metadata["input"] == "x"
        assert caught.value.metadata["got"] == str(bad)
        np.testing.assert_array_equal(good.run(np.array([4])), TABLE[[4]])


def test_a_long_message_is_refused_whole_at_its_own_step(server: Any) -> None:
    """One that runs in several chunks, and one whose bad index is in none of the first."""
    with connect(server.target) as client, client.session("rows") as session:
        tokens = np.arange(3 * CHUNK) % TOKENS
        np.testing.assert_array_equal(session.run(tokens), TABLE[tokens])
        tokens[2 * CHUNK + 1] = -1
        with pytest.raises(InvalidInput, match=f"got -1 at step {2 * CHUNK + 1}") as caught:
            session.run(tokens)
        assert caught.value.reason == "INDEX_OUT_OF_RANGE"


def test_a_refused_row_of_predict_does_not_have_the_others_run_one_by_one(server: Any) -> None:
    rows = np.random.default_rng(0).integers(0, TOKENS, (48, 2))
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        before = count_runs(server)
        fine = stub.Predict(pb.PredictRequest(model="rows", inputs=[rows.astype("<i8").tobytes()], batch=48))
        np.testing.assert_array_equal(np.frombuffer(fine.outputs[0], "<f4").reshape(48, 2, 3), TABLE[rows])
        rows[17, 1] = -1
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(pb.PredictRequest(model="rows", inputs=[rows.astype("<i8").tobytes()], batch=48))
        assert reason_of(caught.value).reason == "INDEX_OUT_OF_RANGE"
        assert count_runs(server) - before < 12
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)


def test_a_refused_row_of_a_frame_does_not_have_the_others_run_one_by_one(server: Any) -> None:
    with connect(server.target) as client, client.pool("rows", 48) as pool:
        tokens = np.random.default_rng(1).integers(0, TOKENS, (48, 2))
        before = count_runs(server)
        np.testing.assert_array_equal(pool.run(tokens), TABLE[tokens])
        bad = tokens.copy()
        bad[5, 1], bad[9, 0] = -1, TOKENS
        with pytest.raises(RowsRefused) as caught:
            pool.run(bad)
        assert {row: error.reason for row, error in caught.value.errors.items()} == {
            5: "INDEX_OUT_OF_RANGE",
            9: "INDEX_OUT_OF_RANGE",
        }
        np.testing.assert_array_equal(pool.run(tokens), TABLE[tokens])
        assert count_runs(server) - before == 3


def test_a_request_of_the_open_inference_protocol_is_refused(server: Any) -> None:
    with tritonclient.grpc.InferenceServerClient(server.target) as client:
        tokens = np.array([[1, 2, -1]])
        given = tritonclient.grpc.InferInput("x", list(tokens.shape), "INT64")
        given.set_data_from_numpy(tokens)
        for more in ({}, {"sequence_id": 7, "sequence_start": True, "sequence_end": True}):
            with pytest.raises(
                tritonclient.grpc.InferenceServerException, match="expected an index from 0 to 9"
            ):
                client.infer("rows", [given], **more)


def test_bad_rows_of_many_streams_leave_their_neighbours_alone(server: Any) -> None:
    opening = pb.StreamRequest(open=pb.OpenSession(model="rows"))

    def steps(*tokens: int) -> Any:
        return iter([opening, *(pb.StreamRequest(inputs=[np.array([t], "<i8").tobytes()]) for t in tokens)])

    good = np.random.default_rng(2).integers(0, TOKENS, (24, 20))
    before = count_runs(server)
    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)
        calls = [stub.Stream(steps(*row.tolist())) for row in good]
        bad = [stub.Stream(steps(3, -1, 1)) for _ in range(24)]
        for row, call in zip(good, calls, strict=True):
            _, *replies = call
            got = np.concatenate([np.frombuffer(reply.outputs[0], "<f4").reshape(-1, 3) for reply in replies])
            np.testing.assert_array_equal(got, TABLE[row])
        for call in bad:
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert reason_of(caught.value).reason == "INDEX_OUT_OF_RANGE"
    # A batch run one by one counts a run a row: 24 bad ones would have made hundreds.
    assert count_runs(server) - before <= good.size
    assert waited(lambda: server.metric("streamcell_slots_used") == 0)


def test_clients_are_told_the_range(server: Any) -> None:
    with grpc.insecure_channel(server.target) as channel:
        model = rpc.StreamCellStub(channel).GetModel(pb.GetModelRequest(model="rows")).model
    assert list(model.inputs[0].index_ranges) == [pb.IndexRange(low=0, high=TOKENS - 1)]
    assert not model.outputs[0].index_ranges
