"""The mistakes that clients make in whatever protocol, and how each protocol must tell of them.

`MISTAKES` is one table: a mistake has one code and one reason, however it is made. What only one protocol can get wrong
is in that protocol's own tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest

from streamcell.proto import pb
from streamcell.proto.inference import oip

from .every_method import info_of

Array = np.ndarray[Any, Any]
GOOD = np.ones((1, 3), np.float32)
NAN = np.full((1, 3), np.nan, np.float32)
LATE_NAN = np.concatenate([np.repeat(GOOD, 500, 0), NAN])
MOST_STEPS, MOST_BYTES = 4096, 4 * 1024 * 1024


def opening(model: str = "lstm", **fields: Any) -> pb.StreamRequest:
    """The first message of a session."""
    return pb.StreamRequest(open=pb.OpenSession(model=model, **fields))


def steps(x: Array, **fields: Any) -> pb.StreamRequest:
    """A message of timesteps, float32[steps, 3]."""
    return pb.StreamRequest(inputs=[x.astype("<f4").tobytes()], **fields)


def opening_frame(model: str = "lstm", count: int = 2, **fields: Any) -> pb.FrameRequest:
    """The first frame of a stream of `count` sessions."""
    return pb.FrameRequest(open=pb.OpenFrames(model=model, **fields), open_sessions=count)


def rows(*inputs: bytes, **fields: Any) -> pb.FrameRequest:
    """A frame for the first two sessions."""
    return pb.FrameRequest(handles=np.arange(2, dtype="<u4").tobytes(), inputs=inputs, **fields)


def infer(x: Array = GOOD, model: str = "lstm", copies: int = 1, **fields: Any) -> oip.ModelInferRequest:
    """A request of the Open Inference Protocol with `x` as input "x", so many times."""
    request = oip.ModelInferRequest(model_name=model, **fields)
    for _ in range(copies):
        request.inputs.add(name="x", datatype={"f": "FP32", "d": "FP64"}[x.dtype.char], shape=x.shape)
        request.raw_input_contents.append(x.tobytes())
    return request


def cut_short(request: oip.ModelInferRequest) -> oip.ModelInferRequest:
    """The same with less than the shape takes."""
    request.raw_input_contents[0] = b"1234567"
    return request


def predict(x: Array = GOOD, **fields: Any) -> pb.PredictRequest:
    """Whole sequences, float32[batch × steps, 3]."""
    return pb.PredictRequest(**{"model": "mlp", "inputs": [x.tobytes()], **fields})


@dataclass(frozen=True)
class Mistake:
    """How each protocol makes it, and what it is told then; a protocol that cannot make it has nothing.

    Attributes:
        code: the status code's name.
        reason: the typed reason.
        says: a part of the text.
        stream: the messages of a session.
        frames: the frames of a stream.
        predict: a request of `Predict`.
        infer: a request of the Open Inference Protocol, unary or in a stream.
        says_of: a part of the text where a protocol says it in its own words, by the names above.
    """

    code: str
    reason: str
    says: str = ""
    stream: Sequence[pb.StreamRequest | bytes] = ()
    frames: Sequence[pb.FrameRequest | bytes] = ()
    predict: pb.PredictRequest | bytes | None = None
    infer: oip.ModelInferRequest | bytes | None = None
    says_of: Mapping[str, str] = field(default_factory=dict)


BAD = "INVALID_ARGUMENT"
_SERVED = "this server has: cnn, deep, gru, lstm"
_PAIR = np.concatenate([GOOD, NAN]).tobytes()

MISTAKES: dict[str, Mistake] = {
    "no message": Mistake(
        BAD, "MALFORMED_MESSAGE",
        stream=[b"\xff\xff\xff\xff"], frames=[b"\xff\xff"], predict=b"\xff\xff\xff\xff", infer=b"\xff\xff",
    ),
    "unknown model": Mistake(
        "NOT_FOUND", "MODEL_NOT_FOUND", _SERVED,
        stream=[opening("nope")], frames=[opening_frame("nope")], predict=predict(model="nope"),
        infer=infer(model="nope"),
    ),
    "unknown version": Mistake(
        "NOT_FOUND", "VERSION_NOT_FOUND", "it has: 1",
        stream=[opening(version="9")], frames=[opening_frame(version="9")], predict=predict(version="9"),
        infer=infer(model_version="9"),
    ),
    "wrong dtype": Mistake(
        BAD, "WRONG_DTYPE", "expected float32, got float64",
        stream=[opening(dtypes=["float64"])], frames=[opening_frame(dtypes=["float64"])],
        predict=predict(dtypes=["float64"]), infer=infer(GOOD.astype("f8")),
        says_of={"infer": "expected FP32, got FP64"},
    ),
    "wrong number of dtypes": Mistake(
        BAD, "WRONG_INPUT_COUNT", "expected 1 dtypes",
        stream=[opening(dtypes=["float32"] * 2)], frames=[opening_frame(dtypes=["float32"] * 2)],
        predict=predict(dtypes=["float32"] * 2),
    ),
    "step before open": Mistake(
        "FAILED_PRECONDITION", "NOT_OPEN", "must carry `open`",
        stream=[steps(GOOD)], frames=[rows(bytes(24))],
    ),
    "second open": Mistake(
        "FAILED_PRECONDITION", "ALREADY_OPEN", "only the first",
        stream=[opening(), opening()], frames=[opening_frame(), opening_frame()],
        says_of={"stream": "only the first message"},
    ),
    "no input": Mistake(
        BAD, "WRONG_INPUT_COUNT", "got 0",
        stream=[opening(), pb.StreamRequest()], frames=[opening_frame(), rows()],
        predict=pb.PredictRequest(model="mlp"), infer=infer(copies=0), says_of={"infer": ""},
    ),
    "too many inputs": Mistake(
        BAD, "WRONG_INPUT_COUNT", "expected 1 inputs",
        stream=[opening(), pb.StreamRequest(inputs=[b"", b""])], frames=[opening_frame(), rows(b"", b"")],
        predict=predict(inputs=[b"", b""]), infer=infer(copies=2), says_of={"infer": ""},
    ),
    "wrong byte count": Mistake(
        BAD, "WRONG_BYTE_COUNT", "7",
        stream=[opening(), pb.StreamRequest(inputs=[b"1234567"])], frames=[opening_frame(), rows(b"1234567")],
        predict=predict(inputs=[b"1234567"]), infer=cut_short(infer()),
        says_of={
            "stream": "float32[steps, 3] takes a multiple of 12 bytes, got 7",
            "frames": "2 rows of 2 timesteps in all take 24 bytes, got 7",
        },
    ),
    "bytes and steps disagree": Mistake(
        BAD, "WRONG_BYTE_COUNT",
        stream=[opening(), steps(GOOD, steps=2)], frames=[opening_frame(), rows(bytes(24), steps=2)],
        predict=predict(inputs=[bytes(60)], batch=2), says_of={"stream": "[2, 3] takes 24 bytes, got 12"},
    ),
    "no step": Mistake(
        BAD, "NO_STEPS", "at least one timestep",
        stream=[opening(), pb.StreamRequest(inputs=[b""])], frames=[opening_frame(), rows(b"")],
        predict=predict(inputs=[b""]), infer=infer(GOOD[:0]),
    ),
    "not a number": Mistake(
        BAD, "NON_FINITE_INPUT", "expected finite values, got nan at step 0",
        stream=[opening(), steps(NAN)], frames=[opening_frame(), rows(_PAIR)], predict=predict(NAN), infer=infer(NAN),
    ),
    "not a number late in a long message": Mistake(
        BAD, "NON_FINITE_INPUT", "got nan at step 500, element 0",
        stream=[opening(), steps(LATE_NAN)],
        frames=[opening_frame(), rows(np.concatenate([np.ones_like(LATE_NAN), LATE_NAN]).tobytes())],
        predict=predict(LATE_NAN), infer=infer(LATE_NAN),
    ),
    "one bad row of many": Mistake(
        BAD, "NON_FINITE_INPUT", "got nan at step 0",
        frames=[opening_frame(), rows(_PAIR)],
        predict=predict(np.concatenate([GOOD, NAN, GOOD, NAN]), model="lstm", batch=4),
        infer=infer(np.stack([GOOD, NAN, GOOD, NAN])),
    ),
    "too many steps": Mistake(
        BAD, "TOO_MANY_STEPS", "4096 timesteps",
        stream=[opening(), steps(np.ones((MOST_STEPS + 1, 3)))],
        frames=[opening_frame(count=1), pb.FrameRequest(handles=bytes(4), inputs=[bytes(12 * (MOST_STEPS + 1))])],
        infer=infer(np.ones((MOST_STEPS + 1, 3), "f4")),
    ),
    "too large": Mistake(
        "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", f"{MOST_BYTES} bytes",
        stream=[opening(), pb.StreamRequest(inputs=[bytes(MOST_BYTES + 1)])],
        frames=[opening_frame(), rows(bytes(MOST_BYTES + 1))], predict=predict(inputs=[bytes(MOST_BYTES + 1)]),
    ),
}  # fmt: skip


class Told(NamedTuple):
    """What a client was told: code, reason and text."""

    code: str
    reason: str
    text: str


def _bytes(message: Any) -> bytes:
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data


def _status(call: Callable[[], Any]) -> Told:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    info = info_of(error)
    assert info.domain == "streamcell"
    return Told(error.code().name, info.reason, error.details())


def _on_stream(channel: grpc.Channel, mistake: Mistake) -> Told:
    call: Any = channel.stream_stream("/streamcell.v1.StreamCell/Stream")
    return _status(lambda: list(call(iter([_bytes(each) for each in mistake.stream]), timeout=30)))


def _in_frames(channel: grpc.Channel, mistake: Mistake) -> Told:
    """A row that is refused alone is told in its frame's reply."""
    call: Any = channel.stream_stream(
        "/streamcell.v1.StreamCell/StreamFrames", response_deserializer=pb.FrameResponse.FromString
    )
    replies: list[pb.FrameResponse] = []
    frames = [_bytes(each) for each in mistake.frames]
    try:
        replies.extend(call(iter(frames), timeout=30))
    except grpc.RpcError as error:
        caught = error
        return _status(lambda: (_ for _ in ()).throw(caught))
    (error_,) = replies[-1].errors
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    return Told(codes[error_.code], error_.reason, error_.text)


def _in_predict(channel: grpc.Channel, mistake: Mistake) -> Told:
    call: Any = channel.unary_unary(
        "/streamcell.v1.StreamCell/Predict", response_deserializer=pb.PredictResponse.FromString
    )
    return _status(lambda: call(_bytes(mistake.predict), timeout=30))


def _in_infer(channel: grpc.Channel, mistake: Mistake) -> Told:
    call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return _status(lambda: call(_bytes(mistake.infer), timeout=30))


def _in_infer_stream(channel: grpc.Channel, mistake: Mistake) -> Told:
    """Errors are answers there, and a good request behind one is answered."""
    call: Any = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=oip.ModelStreamInferResponse.FromString,
    )
    requests = [_bytes(mistake.infer), infer(id="good").SerializeToString()]
    if isinstance(mistake.infer, bytes):  # what cannot be read ends the stream after its answer
        (bad,) = call(iter(requests[:1]), timeout=30)
    else:
        bad, then = call(iter(requests), timeout=30)
        assert then.infer_response.id == "good"
    found = re.search(r"([A-Z_]+) ([A-Z_]+): (.*)", bad.error_message)
    assert found, bad.error_message
    return Told(*found.groups())


PROTOCOLS: dict[str, tuple[str, Callable[[grpc.Channel, Mistake], Told]]] = {
    "Stream": ("stream", _on_stream),
    "StreamFrames": ("frames", _in_frames),
    "Predict": ("predict", _in_predict),
    "ModelInfer": ("infer", _in_infer),
    "ModelStreamInfer": ("infer", _in_infer_stream),
}


def says(protocol: str, mistake: Mistake) -> str:
    """What the text must hold in a protocol."""
    way, _ = PROTOCOLS[protocol]
    return mistake.says_of.get(way, mistake.says)


def mistakes_of(protocol: str) -> dict[str, Mistake]:
    """Those that can be made in a protocol."""
    way, _ = PROTOCOLS[protocol]
    return {name: mistake for name, mistake in MISTAKES.items() if getattr(mistake, way)}


def told(protocol: str, channel: grpc.Channel, mistake: Mistake) -> Told:
    """What a client is told that makes the mistake."""
    return PROTOCOLS[protocol][1](channel, mistake)
