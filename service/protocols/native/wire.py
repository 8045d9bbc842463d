"""Reads and writes the hot path's usual messages without protobuf objects.

Building or parsing a message of one tensor with protobuf's runtime costs several times what this code does. The
format is protobuf's own (https://protobuf.dev/programming-guides/encoding):
`tests/service/protocols/native/test_wire_format.py` compares it
with the generated classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from streamcell.proto import pb
from streamcell.service.generation.reply import Reply, StopReason
from streamcell.service.protocols.common.protobuf import SMALL, varint

# Field numbers and wire types of streamcell.v1: (number << 3) | type.
_OPEN = 0x0A  # StreamRequest.open: 1, length-delimited
_INPUT = _OUTPUT = 0x12  # StreamRequest.inputs, StreamResponse.outputs: 2, length-delimited
_MODEL = 0x0A  # PredictRequest.model: 1, length-delimited
_PREDICT_INPUT = 0x1A  # PredictRequest.inputs: 3, length-delimited
_OUTPUT_TAG = b"\x12"
_PREDICT_OUTPUT_TAG = b"\x0a"  # PredictResponse.outputs: 1, length-delimited
_BATCH_TAG = b"\x10"  # PredictResponse.batch: 2, varint
_STEPS_TAG = b"\x18"  # StreamResponse.steps, PredictResponse.steps: 3, varint
_STEP_INDEX_TAG = b"\x20"  # StreamResponse.step_index: 4, varint
_GENERATED_TAG = b"\x32"  # StreamResponse.generated: 6, length-delimited
_TAG_TAG = b"\x28"  # StreamResponse.tag: 5, varint

_STOP_REASONS = {
    StopReason.STEPS: pb.STOP_REASON_STEPS,
    StopReason.CLASS: pb.STOP_REASON_CLASS,
    StopReason.REQUEST: pb.STOP_REASON_REQUEST,
    StopReason.NON_FINITE: pb.STOP_REASON_NON_FINITE,
}

_STEPS = [b"", *[_STEPS_TAG + small for small in SMALL[1:]]]  # the field, by its value


def only_input(message: bytes) -> bytes | None:
    """The tensor of a StreamRequest that holds one input and nothing else; None for any other message."""
    if len(message) < 2 or message[0] != _INPUT:
        return None
    length = message[1]
    if length < 0x80:  # as `_last`, which this saves each small message
        return message[2:] if length and 2 + length == len(message) else None
    return _last(message, 1)


def only_opening(message: bytes) -> tuple[bytes, bytes] | None:
    """The opening and the tensor of a StreamRequest that holds these and nothing else; None for any other message."""
    if len(message) < 4 or message[0] != _OPEN or message[1] >= 0x80:
        return None
    end = 2 + message[1]
    if len(message) < end + 2 or message[end] != _INPUT:
        return None
    payload = _last(message, end + 1)
    return None if payload is None else (message[2:end], payload)


def only_predict(message: bytes) -> tuple[bytes, bytes] | None:
    """Model's name and tensor of a PredictRequest that holds these and nothing else; None for any other message."""
    if len(message) < 4 or message[0] != _MODEL or not 0 < message[1] < 0x80:
        return None
    end = 2 + message[1]
    if len(message) < end + 2 or message[end] != _PREDICT_INPUT:
        return None
    payload = _last(message, end + 1)
    return None if payload is None else (message[2:end], payload)


def _last(message: bytes, at: int) -> bytes | None:
    """The content of the length-delimited field whose length is at `at`; None if it is empty or not the last."""
    length = message[at]
    at += 1
    if length >= 0x80:
        length &= 0x7F
        shift = 7
        while True:
            if at == len(message) or shift > 28:
                return None
            byte = message[at]
            at += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
    return message[at:] if length and at + length == len(message) else None


def predict_response(outputs: Sequence[bytes], batch: int, steps: int, model: str, version: str) -> bytes:
    """A PredictResponse, as the generated class would serialise it; `batch` is at least 1."""
    parts: list[bytes] = []
    for output in outputs:
        parts += (_PREDICT_OUTPUT_TAG, varint(len(output)), output)
    parts += (_BATCH_TAG, varint(batch), _STEPS_TAG + varint(steps) if steps else b"", _named(model, version))
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _named(model: str, version: str) -> bytes:
    return pb.PredictResponse(model=model, version=version).SerializeToString()


def stream_response(outputs: Sequence[bytes], steps: int, step_index: int, tag: int) -> bytes:
    """A StreamResponse without `opened`, as the generated class would serialise it."""
    if len(outputs) == 1 and step_index and not tag:
        output = outputs[0]
        size = len(output)
        middle = _STEPS[steps] if steps < len(_STEPS) else _STEPS_TAG + varint(steps)
        return b"".join(
            (
                _OUTPUT_TAG,
                SMALL[size] if size < 0x80 else varint(size),
                output,
                middle,
                _STEP_INDEX_TAG,
                SMALL[step_index] if step_index < 0x80 else varint(step_index),
            )
        )
    parts: list[bytes] = []
    for output in outputs:
        parts += (_OUTPUT_TAG, varint(len(output)), output)
    if steps:
        parts += (_STEPS_TAG, varint(steps))
    if step_index:
        parts += (_STEP_INDEX_TAG, varint(step_index))
    if tag:
        parts += (_TAG_TAG, varint(tag))
    return b"".join(parts)


def generated_response(reply: Reply) -> bytes:
    """A serialised StreamResponse with `generated`."""
    generated = pb.Generated(
        steps=reply.steps,
        chosen=reply.chosen,
        first=reply.first,
        seed=reply.seed,
        stop_reason=None if reply.stop_reason is None else _STOP_REASONS[reply.stop_reason],
    )
    for each in reply.sequences:
        generated.hypotheses.add(
            classes=each.classes,
            log_probability=each.log_probability,
            score=each.score,
            stopped=each.stopped,
        )
    data = generated.SerializeToString()
    response = stream_response(reply.outputs, reply.output_steps, reply.step_index, reply.tag)
    return b"".join((response, _GENERATED_TAG, varint(len(data)), data))
