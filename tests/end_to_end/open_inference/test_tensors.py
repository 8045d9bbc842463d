"""Dtypes raw and typed, shapes and batches, requested outputs, and what is wrong with a request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from streamcell.proto.inference import oip, rpc
from streamcell.service.protocols.oip.tensors import DATATYPES
from tests.support.onnx_files import parsed, save
from tests.support.waiting import waited

Steps = np.ndarray[Any, Any]
Expected = Callable[[str, Steps], Steps]
FIELDS = {
    "bool": "bool_contents", "uint8": "uint_contents", "uint16": "uint_contents", "uint32": "uint_contents",
    "uint64": "uint64_contents", "int8": "int_contents", "int16": "int_contents", "int32": "int_contents",
    "int64": "int64_contents", "float32": "fp32_contents", "float64": "fp64_contents",
}  # fmt: skip


@pytest.fixture(scope="module")
def echoes(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stateless models that give back what they get, one a dtype, and one with inputs and outputs of two."""
    folder = tmp_path_factory.mktemp("echoes")
    graphs = {
        dtype: f"({_onnx(dtype)}[n, 3] x) => ({_onnx(dtype)}[n, 3] y) {{ y = Identity(x) }}"
        for dtype in DATATYPES
    }
    graphs["two"] = (
        "(float[n, 2] a, int64[n] b) => (int64[n] c, float[n, 2] d) { c = Identity(b) d = Identity(a) }"
    )
    sidecars = {"two": 'layout = "batch"\ninputs = ["a", "b"]\noutputs = ["c", "d"]\n'}
    for name, graph in graphs.items():
        save(parsed(graph), folder / f"{name}.onnx", sidecars.get(name))
    return start_server(folder)


def _onnx(dtype: str) -> str:
    return {"float32": "float", "float64": "double"}.get(dtype, dtype)


@pytest.fixture
def stub(served: Any) -> Iterator[Any]:
    with grpc.insecure_channel(served.target) as channel:
        yield rpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


@pytest.fixture
def echo(echoes: Any) -> Iterator[Any]:
    with grpc.insecure_channel(echoes.target) as channel:
        yield rpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def ask(model: str, *arrays: tuple[str, Steps], **fields: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model, **fields)
    for name, array in arrays:
        request.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def typed(request: oip.ModelInferRequest, *arrays: Steps) -> oip.ModelInferRequest:
    del request.raw_input_contents[:]
    for given, array in zip(request.inputs, arrays, strict=True):
        getattr(given.contents, FIELDS[array.dtype.name]).extend(array.ravel().tolist())
    return request


def outputs(reply: oip.ModelInferResponse) -> dict[str, Steps]:
    names = {datatype: name for name, datatype in DATATYPES.items()}
    return {
        tensor.name: np.frombuffer(raw, names[tensor.datatype]).reshape(tensor.shape)
        for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def values(dtype: str) -> Steps:
    if dtype == "bool":
        return np.array([[True, False, True], [False, False, True]])
    kind = np.dtype(dtype)
    edge = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    return np.array([[edge.min, 0, edge.max], [1, 2, 3]], kind)


@pytest.mark.parametrize("dtype", DATATYPES)
def test_every_dtype_travels_raw_and_typed(echo: Any, dtype: str) -> None:
    x = values(dtype)
    requests = [ask(dtype, ("x", x))]
    if dtype in FIELDS:
        requests.append(typed(ask(dtype, ("x", x)), x))
    for request in requests:
        (y,) = outputs(echo.ModelInfer(request)).values()
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, x)


def test_inputs_go_by_name_and_outputs_come_as_asked_for(echo: Any) -> None:
    a, b = np.ones((4, 2), np.float32), np.arange(4)
    for order in ((("a", a), ("b", b)), (("b", b), ("a", a))):
        for request in (ask("two", *order), typed(ask("two", *order), *(array for _, array in order))):
            found = outputs(echo.ModelInfer(request))
            assert list(found) == ["c", "d"]
            np.testing.assert_array_equal(found["c"], b)
            np.testing.assert_array_equal(found["d"], a)
    request = ask("two", ("a", a), ("b", b))
    request.outputs.add(name="d")
    assert list(outputs(echo.ModelInfer(request))) == ["d"]
    request.outputs.add(name="c")
    assert list(outputs(echo.ModelInfer(request))) == ["d", "c"]


@pytest.mark.parametrize("shape", [(3,), (5, 3), (1, 5, 3), (4, 5, 3)])
@pytest.mark.parametrize("model", ["lstm", "mlp"])
def test_without_a_sequence_whole_sequences_are_run_from_the_initial_state(
    stub: Any, served: Any, expected: Expected, model: str, shape: tuple[int, ...]
) -> None:
    x = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    wanted = expected(model, x.reshape(-1, shape[-2] if len(shape) > 1 else 1, 3)).reshape(*shape[:-1], 2)
    for _ in range(2):
        found = outputs(stub.ModelInfer(ask(model, ("x", x))))
        np.testing.assert_allclose(found["y"], wanted, rtol=1e-5, atol=1e-5)
    (reply,) = stub.ModelStreamInfer(iter([ask(model, ("x", x), id="whole")]))
    assert reply.infer_response.id == "whole"
    np.testing.assert_allclose(outputs(reply.infer_response)["y"], wanted, rtol=1e-5, atol=1e-5)
    assert waited(lambda: served.metric("streamcell_slots_used", model=model) == 0)


@pytest.mark.conformance
def test_whole_sequences_show_their_last_states(stub: Any, modules: Any) -> None:
    import torch

    x = np.random.default_rng(4).standard_normal((3, 5, 3)).astype(np.float32)
    request = ask("gru", ("x", x))
    request.outputs.add(name="h_next")
    found = outputs(stub.ModelInfer(request))
    with torch.no_grad():
        _, h = modules["gru"](torch.from_numpy(x))
    wanted = h.numpy().swapaxes(0, 1)
    np.testing.assert_allclose(found["h_next"], wanted, rtol=1e-5, atol=1e-5)


def test_calls_on_a_stateless_model_batch_together(stub: Any, served: Any, expected: Expected) -> None:
    x = np.random.default_rng(4).standard_normal((64, 7, 3)).astype(np.float32)
    rows, runs = (served.metric(f"streamcell_batch_rows_{each}", model="mlp") for each in ("sum", "count"))
    found: list[Any] = [None] * 64

    def run(first: int) -> None:
        calls = [stub.ModelInfer.future(ask("mlp", ("x", x[at : at + 1]))) for at in range(first, 64, 4)]
        for at, call in zip(range(first, 64, 4), calls, strict=True):
            found[at] = outputs(call.result(60))["y"][0]

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    np.testing.assert_allclose(np.stack(found), expected("mlp", x), rtol=1e-5, atol=1e-5)
    assert waited(lambda: served.metric("streamcell_batch_rows_sum", model="mlp") - rows == 64)
    assert served.metric("streamcell_batch_rows_count", model="mlp") - runs <= 64


@pytest.mark.conformance
def test_a_request_may_be_larger_than_four_mebibytes(stub: Any, expected: Expected) -> None:
    x = np.random.default_rng(4).standard_normal((150, 3000, 3)).astype(np.float32)
    assert x.nbytes > 5 * 2**20
    found = outputs(stub.ModelInfer(ask("lstm", ("x", x)), timeout=60))["y"]
    np.testing.assert_allclose(found[::50], expected("lstm", x[::50]), rtol=1e-5, atol=1e-5)


ONE = np.ones((1, 3), np.float32)


def _changed(change: Callable[[Any], Any], **flags: Any) -> oip.ModelInferRequest:
    request = ask("lstm", ("x", ONE))
    for name, value in flags.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[
            type(value)
        ]
        setattr(request.parameters[name], kind, value)
    change(request)
    return request


def _raw_and_typed(request: Any) -> None:
    request.inputs[0].contents.fp32_contents.extend([1, 1, 1])


def _nothing(request: Any) -> None:
    pass


def _y_twice(request: Any) -> None:
    for _ in range(2):
        request.outputs.add(name="y")


def _two_rows(request: Any) -> None:
    request.inputs[0].shape[:] = [2, 1, 3]
    request.raw_input_contents[0] = bytes(24)


def _classified(request: Any) -> None:
    request.outputs.add(name="y").parameters["classification"].int64_param = 1


def _shared(request: Any) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"


# What only this protocol can get wrong; the others are in tests/support/mistakes.py.
MISTAKES: dict[str, tuple[oip.ModelInferRequest, str, str]] = {
    "unknown input": (ask("lstm", ("z", ONE)), "INVALID_ARGUMENT", "WRONG_INPUT_COUNT"),
    "strings": (
        _changed(lambda request: setattr(request.inputs[0], "datatype", "BYTES")), "INVALID_ARGUMENT", "WRONG_DTYPE",
    ),
    "wrong shape": (ask("lstm", ("x", np.ones((1, 4), "f4"))), "INVALID_ARGUMENT", "WRONG_SHAPE"),
    "too many axes": (ask("lstm", ("x", ONE[None, None])), "INVALID_ARGUMENT", "WRONG_SHAPE"),
    "a negative size": (
        _changed(lambda request: request.inputs[0].shape.__setitem__(0, -1)), "INVALID_ARGUMENT", "WRONG_SHAPE",
    ),
    "raw contents of another input": (
        _changed(lambda request: request.raw_input_contents.append(b"1234")), "INVALID_ARGUMENT", "WRONG_INPUT_COUNT",
    ),
    "raw and typed": (_changed(_raw_and_typed), "INVALID_ARGUMENT", "WRONG_CONTENTS"),
    "typed in another field": (
        typed(_changed(_nothing), ONE.astype("i8")), "INVALID_ARGUMENT", "WRONG_CONTENTS",
    ),
    "too few typed": (typed(_changed(_nothing), ONE[:, :2]), "INVALID_ARGUMENT", "WRONG_BYTE_COUNT"),
    "unknown output": (
        _changed(lambda request: request.outputs.add(name="z")), "INVALID_ARGUMENT", "UNKNOWN_OUTPUT",
    ),
    "output twice": (_changed(_y_twice), "INVALID_ARGUMENT", "UNKNOWN_OUTPUT"),
    "classification": (_changed(_classified), "UNIMPLEMENTED", "NOT_SUPPORTED"),
    "shared memory": (_changed(_shared), "UNIMPLEMENTED", "NOT_SUPPORTED"),
    "an id of a wrong type": (_changed(_nothing, sequence_id=1.5), "INVALID_ARGUMENT", "WRONG_PARAMETER"),
    "a start of a wrong type": (
        _changed(_nothing, sequence_id=1, sequence_start=1), "INVALID_ARGUMENT", "WRONG_PARAMETER",
    ),
    "a start without an id": (_changed(_nothing, sequence_start=True), "INVALID_ARGUMENT", "WRONG_PARAMETER"),
    "an end of the id that is none": (
        _changed(_nothing, sequence_id=0, sequence_end=True), "INVALID_ARGUMENT", "WRONG_PARAMETER",
    ),
    "an id that is too long": (_changed(_nothing, sequence_id="x" * 129), "INVALID_ARGUMENT", "WRONG_PARAMETER"),
    "a timeout of a wrong type": (_changed(_nothing, timeout="soon"), "INVALID_ARGUMENT", "WRONG_PARAMETER"),
    "an unknown parameter of Triton's": (_changed(_nothing, triton_new=True), "INVALID_ARGUMENT", "WRONG_PARAMETER"),
    "several rows in a sequence": (
        _changed(_two_rows, sequence_id=1, sequence_start=True), "INVALID_ARGUMENT", "WRONG_SHAPE",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_has_its_own_error_on_either_call(stub: Any, served: Any, mistake: str) -> None:
    request, code, reason = MISTAKES[mistake]
    before = served.metric("streamcell_errors_total", code=code, reason=reason)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    error: Any = caught.value
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (error.code().name, info.reason) == (code, reason)
    good = ask("lstm", ("x", ONE), id="good")
    bad, then = stub.ModelStreamInfer(iter([request, good]))
    assert f"{code} {reason}: " in bad.error_message
    assert then.infer_response.id == "good"
    assert waited(lambda: served.metric("streamcell_errors_total", code=code, reason=reason) == before + 2)
    assert waited(lambda: served.metric("streamcell_slots_used") == 0)


def test_what_has_no_effect_here_is_taken(stub: Any) -> None:
    flags = {
        "priority": 3,
        "timeout": 1000,
        "triton_enable_empty_final_response": True,
        "mine": 1.5,
        "sequence_id": "",
    }
    assert stub.ModelInfer(_changed(_nothing, **flags)).raw_output_contents
    with_id = ask("mlp", ("x", ONE))
    with_id.parameters["sequence_id"].int64_param = 5
    assert stub.ModelInfer(with_id).raw_output_contents
