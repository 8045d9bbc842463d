"""Valid messages of every method, as an attacker has recorded them from clients of its own."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcell.proto import pb
from streamcell.proto.inference import oip

from .honest import ECHO, INPUT

OURS = "/streamcell.v1.StreamCell/"
THEIRS = "/inference.GRPCInferenceService/"


@dataclass(frozen=True)
class Recorded:
    """Messages of one method; `first` is what a stream needs before them, `streams` whether it is one."""

    method: str
    messages: tuple[bytes, ...]
    first: tuple[bytes, ...] = ()
    streams: bool = False


def _x(*shape: int) -> bytes:
    """Values that no honest client sends."""
    return np.full(shape, 0.0115, np.float32).tobytes()  # 0x3c3c6a7f


def infer(model: str, shape: tuple[int, ...], **parameters: object) -> bytes:
    """A ModelInferRequest."""
    message = oip.ModelInferRequest(model_name=model, raw_input_contents=[_x(*shape)])
    message.inputs.add(name="x", datatype="FP32", shape=shape)
    for name, value in parameters.items():
        if name == "id":
            message.id = str(value)
        elif name == "output":
            message.outputs.add(name=str(value))
        elif isinstance(value, bool):
            message.parameters[name].bool_param = value
        elif isinstance(value, int):
            message.parameters[name].int64_param = value
    return message.SerializeToString()


def _typed() -> bytes:
    message = oip.ModelInferRequest(model_name="echo")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[2, 1, ECHO])
    tensor.contents.fp32_contents.extend([0.25] * 2 * ECHO)
    return message.SerializeToString()


def _packed(*numbers: int) -> bytes:
    return np.asarray(numbers, "<u4").tobytes()


_OPENING = pb.OpenInput(name="x", value=_x(2), dtype="float32", shape=[2])


_SNAPSHOT = struct.pack("<16sIIQ", b"StreamCell snap\n", 1, 0, 5) + bytes(9)


def _resumable(model: str, attempt: int, **fields: Any) -> pb.OpenSession:
    """An opening of a session that outlives its stream."""
    return pb.OpenSession(
        model=model, session=bytes(range(16)), token=bytes(range(32)), window=4, attempt=attempt, **fields
    )  # fmt: skip


def _stream(model: str, size: int) -> Recorded:
    request = pb.StreamRequest
    messages = (
        request(inputs=[_x(1, size)]),
        request(inputs=[_x(3, size)]),
        request(inputs=[_x(4, size)], steps=4, tag=7, output_mode=pb.OUTPUT_MODE_LAST),
        request(inputs=[_x(90, size)], output_mode=pb.OUTPUT_MODE_NONE),
        request(open=pb.OpenSession(model=model), inputs=[_x(2, size)]),
        request(open=pb.OpenSession(model=model, inputs=[_OPENING])),
        request(generate=pb.Generate(steps=3)),
        request(stop_generation=3),
    )
    messages += (
        request(open=_resumable(model, 1)), request(open=_resumable(model, 2, received=1, resume=True, held=1)),
        request(received=1, received_steps=2), request(copy=pb.StateCopy(snapshot=True), tag=2),
        request(copy=pb.StateCopy(restore=_SNAPSHOT)),
        request(copy=pb.StateCopy(fork=pb.Fork(session=bytes(range(1, 17)), token=bytes(32), window=3))),
        request(open=_resumable(model, 3, snapshot=_SNAPSHOT)),
    )  # fmt: skip
    opening = request(open=pb.OpenSession(model=model, dtypes=["float32"]))
    return Recorded(
        OURS + "Stream", tuple(m.SerializeToString() for m in messages), (opening.SerializeToString(),), True
    )


def _frames(model: str, size: int) -> Recorded:
    request = pb.FrameRequest
    messages = (
        request(handles=_packed(0, 1, 2), inputs=[_x(3, size)]),
        request(handles=_packed(0, 2), inputs=[_x(6, size)], steps=3, tag=5),
        request(handles=_packed(0, 1, 2), lengths=_packed(1, 4, 2), inputs=[_x(7, size)], answered=1),
        request(
            open_sessions=1, close=_packed(1), reset=_packed(0), handles=_packed(0), inputs=[_x(2, size)]
        ),
        request(open_sessions=2, open_inputs=[_OPENING]),
        request(fork=_packed(0, 0), snapshot=True, tag=6),
        request(restore=_SNAPSHOT),
    )
    opening = request(open=pb.OpenFrames(model=model, current_only=True), open_sessions=3)
    return Recorded(
        OURS + "StreamFrames",
        tuple(m.SerializeToString() for m in messages),
        (opening.SerializeToString(),),
        True,
    )


def recorded() -> list[Recorded]:
    """Of every method, those that run a model first."""
    predicts = (
        pb.PredictRequest(model="echo", inputs=[_x(2, ECHO)]),
        pb.PredictRequest(model="echo", inputs=[_x(3, 2, ECHO)], batch=3),
        pb.PredictRequest(model="lstm", inputs=[_x(5, INPUT)], steps=5, dtypes=["float32"]),
        pb.PredictRequest(model="echo", inputs=[_x(70, ECHO)]),
        pb.PredictRequest(model="echo", inputs=[_x(2, ECHO)], open_inputs=[_OPENING]),
    )
    infers = (
        infer("echo", (1, 1, ECHO)), infer("echo", (1, 2, ECHO), id="17"), infer("echo", (1, 3, ECHO)),
        infer("echo", (2, 4, ECHO), output="y"), infer("echo", (5, ECHO)), _typed(),
        infer("lstm", (1, INPUT), sequence_id=99, sequence_start=True), infer("lstm", (2, INPUT), sequence_id=99),
        infer("lstm", (3, INPUT), sequence_id=99, sequence_end=True), infer("lstm", (4, INPUT)),
    )  # fmt: skip
    named = oip.ModelMetadataRequest(name="echo", version="1").SerializeToString()
    page = pb.ListSessionsRequest(model="lstm", page_size=2, page_token="1.5 ab").SerializeToString()
    load = oip.RepositoryModelLoadRequest(repository_name="r", model_name="echo")
    load.parameters["config"].string_param = "{}"
    return [
        Recorded(THEIRS + "ModelInfer", infers),
        Recorded(THEIRS + "ModelStreamInfer", infers, (), True),
        Recorded(OURS + "Predict", tuple(each.SerializeToString() for each in predicts)),
        _stream("echo", ECHO),
        _stream("lstm", INPUT),
        _frames("echo", ECHO),
        _frames("lstm", INPUT),
        Recorded(OURS + "ListModels", (b"",)),
        Recorded(OURS + "Drain", (b"",)),
        Recorded(OURS + "DrainReplica", (pb.DrainReplicaRequest(fraction=0.5).SerializeToString(),)),
        Recorded(OURS + "GetModel", (pb.GetModelRequest(model="echo").SerializeToString(),)),
        Recorded(OURS + "CloseSession", (pb.CloseSessionRequest(session_id="0123456789abcdef").SerializeToString(),)),
        Recorded(OURS + "ListSessions", (page,)),
        *(
            Recorded(THEIRS + name, (named,))
            for name in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
        ),
        *(Recorded(THEIRS + name, (b"",)) for name in ("ServerLive", "ServerReady", "ServerMetadata")),
        Recorded(THEIRS + "RepositoryIndex", (oip.RepositoryIndexRequest(ready=True).SerializeToString(),)),
        Recorded(THEIRS + "RepositoryModelLoad", (load.SerializeToString(),)),
    ]  # fmt: skip
