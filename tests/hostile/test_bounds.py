"""What a client sends never makes the server's memory or its errors grow: both are bounded in bytes, not in counts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from google.rpc import error_details_pb2, status_pb2

from streamcell.proto import pb
from streamcell.proto.inference import oip, rpc
from streamcell.service.errors import NotSupported, ServiceError, WrongParameter, as_status, cut, shown
from streamcell.service.processes.frontend.remote_model import Reports
from streamcell.service.processes.pipe import Pipe
from streamcell.service.processes.ring_records import Layout, pack_error, text_at, text_records, unpack_error
from streamcell.service.protocols.oip import sequences as oip_sequences
from streamcell.service.protocols.oip.requests import ReplyTemplates
from streamcell.service.protocols.oip.sequences import Sequences
from streamcell.service.protocols.oip.tensors import RequestShape
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.table import SessionTable

LONG = "é" * 2**19  # a megabyte
OURS, THEIRS = "/streamcell.v1.StreamCell/", "/inference.GRPCInferenceService/"
MOST_METADATA = 8192  # what gRPC's clients take
STEP = np.ones(3, np.float32).tobytes()


def _infer(model: str = "lstm", **fields: Any) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name=model, raw_input_contents=[STEP], **fields)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    return message


def _odd() -> Iterator[tuple[str, Any]]:
    """A megabyte of text wherever a message takes a text."""
    yield "Predict", pb.PredictRequest(model=LONG, inputs=[STEP])
    yield "Predict", pb.PredictRequest(model="lstm", version=LONG, inputs=[STEP])
    yield "Predict", pb.PredictRequest(model="lstm", inputs=[STEP], dtypes=[LONG])
    yield "Stream", pb.StreamRequest(open=pb.OpenSession(model=LONG))
    yield "Stream", pb.StreamRequest(open=pb.OpenSession(model="lstm", version=LONG))
    yield "Stream", pb.StreamRequest(open=pb.OpenSession(model="lstm", dtypes=[LONG]))
    yield "StreamFrames", pb.FrameRequest(open=pb.OpenFrames(model=LONG))
    yield "StreamFrames", pb.FrameRequest(open=pb.OpenFrames(model="lstm", dtypes=[LONG]))
    yield "GetModel", pb.GetModelRequest(model=LONG)
    yield "GetModel", pb.GetModelRequest(model="lstm", version=LONG)
    yield "CloseSession", pb.CloseSessionRequest(session_id=LONG)
    yield "ListSessions", pb.ListSessionsRequest(model=LONG)
    yield "ListSessions", pb.ListSessionsRequest(page_token=LONG)
    for kind in ("ModelInfer", "ModelStreamInfer"):
        for message in _odd_infers():
            yield kind, message
    yield "ModelMetadata", oip.ModelMetadataRequest(name=LONG)
    yield "ModelConfig", oip.ModelConfigRequest(name="lstm", version=LONG)
    yield "ModelStatistics", oip.ModelStatisticsRequest(name=LONG)
    yield "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=LONG)
    load = oip.RepositoryModelLoadRequest(model_name="lstm")
    load.parameters[LONG].bool_param = True
    yield "RepositoryModelLoad", load
    yield "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=LONG)


def _odd_infers() -> Iterator[oip.ModelInferRequest]:
    yield _infer(LONG)
    yield _infer(model_version=LONG)
    yield _infer(id=LONG)
    yield _infer(LONG, id=LONG)
    for name in (LONG, "triton_" + LONG, "sequence_id"):
        message = _infer("nobody" if name is LONG else "lstm")
        message.parameters[name].string_param = LONG
        yield message
    for change in ("name", "datatype"):
        message = _infer()
        setattr(message.inputs[0], change, LONG)
        yield message
    message = _infer()
    message.inputs[0].shape[:] = [1] * 2**18
    yield message
    message = _infer()
    message.inputs[0].parameters["classification" + LONG].bool_param = True
    message.outputs.add(name=LONG)
    yield message
    message = _infer()
    for _ in range(2000):
        message.inputs.add(name="é" * 250)
    yield message
    message = _infer()
    message.inputs[0].parameters["shared_memory_" + LONG].bool_param = True
    yield message


ODD = list(_odd())
OPENING = {"Stream", "StreamFrames", "ModelStreamInfer"}


@pytest.fixture(scope="module")
def server(start_server: Any, models_dir: Path) -> Any:
    return start_server(models_dir, "--model-control", "explicit", "--load-model", "lstm")


@pytest.mark.parametrize("at", range(len(ODD)), ids=[f"{at} {method}" for at, (method, _) in enumerate(ODD)])
def test_a_megabyte_of_text_is_answered_with_a_small_typed_error(server: Any, at: int) -> None:
    method, message = ODD[at]
    path = (OURS if type(message).DESCRIPTOR.full_name.startswith("streamcell") else THEIRS) + method
    data = message.SerializeToString()
    with grpc.insecure_channel(server.target) as channel:
        try:
            if method in OPENING:
                (answer,) = channel.stream_stream(path)(iter([data]), timeout=60)
            else:
                answer = channel.unary_unary(path)(data, timeout=60)
        except grpc.RpcError as error:
            trailing = {each.key: each.value for each in error.trailing_metadata() or ()}  # type: ignore[attr-defined]
            details = trailing["grpc-status-details-bin"]
            assert len(details) < MOST_METADATA / 2
            rich = status_pb2.Status.FromString(details)
            info = error_details_pb2.ErrorInfo()
            rich.details[0].Unpack(info)
            assert info.reason not in ("", "INTERNAL")
            assert all(len(value) <= 120 for value in info.metadata.values())
            return
    # Errors of this stream are messages.
    assert method == "ModelStreamInfer"
    reply = oip.ModelStreamInferResponse.FromString(answer)
    assert reply.error_message
    assert len(answer) < MOST_METADATA


@pytest.mark.conformance
def test_memory_does_not_grow_with_what_clients_send(server: Any) -> None:
    """Requests that are accepted and that are refused, each with a text that no other has."""
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]

    def taken() -> int:
        return sum(process.memory_info().rss for process in processes)

    def send(stub: Any, number: int) -> None:
        text = f"{number} " + "x" * 200_000
        accepted = _infer(id=str(number))
        accepted.parameters["note"].string_param = text
        stub.ModelInfer(accepted, timeout=60)
        refused = _infer(id=str(number))
        refused.outputs.add(name=text)
        refused.parameters["sequence_id"].int64_param = 10**9 + number
        refused.parameters["sequence_start"].bool_param = True
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(refused, timeout=60)

    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        for number in range(50):  # what is taken once is taken now
            send(stub, number)
        before = taken()
        for number in range(50, 800):
            send(stub, number)
        # 150 MB in keys, and twice as much in texts.
        assert taken() - before < 60 * 2**20


def test_remembered_ends_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 2**20
    monkeypatch.setattr(oip_sequences, "_ENDED_BYTES", most)
    sequences = Sequences(SessionTable(idle_timeout_s=0), 16)
    tracemalloc.start()
    try:
        for number in range(20_000):
            error = WrongParameter(f"{number} {'é' * 20_000}", parameter="x" * 20_000)
            sequences.refuse(("model", f"{number} {'é' * 100}"), error, new=True)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 2 * most
    assert (
        sequences.not_started(("model", f"19999 {'é' * 100}")).reason == "SEQUENCE_GAP"
    )  # the newest is known
    assert sequences.not_started(("model", f"0 {'é' * 100}")).reason == "SEQUENCE_NOT_STARTED"
    # One that starts anew is forgotten, and what it took is free.
    for number in range(20_000):
        sequences._forget(("model", f"{number} {'é' * 100}"))
    assert sequences._errors_bytes == 0


def test_the_fixed_parts_of_replies_are_bounded_in_bytes(models_dir: Path) -> None:
    file = open_model(models_dir / "lstm.onnx", "lstm")
    answers = ReplyTemplates()
    tracemalloc.start()
    try:
        for number in range(1, 1_300):
            answer = answers.get(file, ("y",), RequestShape((number,), 1, number))
            for size in range(0, 1024, 13):
                answer.streamed(b"x" * size, [bytes(8)])
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 16 * 2**20


def test_what_a_front_end_keeps_for_the_next_engine_is_bounded_in_bytes() -> None:
    reports = Reports()
    tracemalloc.start()
    try:
        for number in range(20_000):
            reports.error(WrongParameter(f"{number} {LONG[:800]}", parameter=LONG[:2000]))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 32 * 2**20
    sent: list[tuple[Any, ...]] = []

    class Kept(Pipe):
        behind = False

        def __init__(self) -> None:
            pass

        def send(self, *report: Any) -> None:
            sent.append(report)

    kept = Kept()
    reports.attach(kept)
    reports.detach(kept)
    assert sent
    assert not reports._kept


@pytest.mark.parametrize(
    "text", [LONG, "\0" * 5000, "\U0001f600" * 3000, "x" * 119, "'\"\\" * 100, "", "a\nb"]
)
def test_an_error_fits_in_the_metadata_that_clients_take(text: str) -> None:
    facts = dict.fromkeys(("model", "version", "parameter", "expected", "got"), text)
    error = WrongParameter(f"said: {text}", **facts)
    code, details, trailing = as_status(error)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    ((_, rich),) = trailing
    # Percent-encoded at worst, and base64.
    assert 3 * len(details.encode()) + 4 * len(rich) / 3 < MOST_METADATA
    assert len(shown(text)) <= 120
    assert len(cut(text)) <= 120
    if len(text) <= 100 and text.isprintable():
        assert cut(text) == text
        assert text in details
    # And in one write of the smallest ring.
    packed = pack_error(error)
    for layout in (Layout(((32, 36),), 96, 256), Layout(((32, 36),), 96, 4096)):
        records = text_records(layout, 4, 0, 0, packed)
        back = unpack_error(text_at(records, 0, int(records[0, 12:16].view("<u4")[0]))[0])
        assert type(back) is WrongParameter
        assert str(back)[:100] == str(error)[:100]


def test_a_client_cannot_push_the_remedy_out_of_an_error(served: Any) -> None:
    with grpc.insecure_channel(served.target) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelMetadata(oip.ModelMetadataRequest(name=LONG[:30_000]), timeout=60)
        assert "this server has: " in caught.value.details()
        request = _infer()
        request.outputs.add(name=LONG)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=60)
        assert "it has: " in caught.value.details()


def test_errors_of_the_base_class_are_bounded_too() -> None:
    for kind in (ServiceError, NotSupported):
        assert len(str(kind(LONG)).encode()) <= 1024
