"""Makes a `Frame` of a message: every check that needs neither other frames nor the sessions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from streamcell.card import Signature
from streamcell.proto import pb
from streamcell.service.errors import (
    MalformedMessage,
    MessageTooLarge,
    NoSteps,
    TooManySteps,
    WrongByteCount,
    WrongInputCount,
)
from streamcell.service.frames.frame import Frame
from streamcell.service.protocols.common.requests import Limits, output_mode
from streamcell.service.sessions.capacity import Ints
from streamcell.service.sessions.image import Bytes
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.value_check import ValueCheck

_UINT32 = np.dtype("<u4")
_MAX_REPLY_BYTES = 2**31 - 2**20  # protobuf's and gRPC's own limit, with room for the rest of a reply


def make_frame(request: pb.FrameRequest, model: Model, limits: Limits, default: Output, number: int) -> Frame:
    """The frame of `request`, the stream's `number`-th. Rows of bad length or bad values are refused in it.

    Raises:
        MalformedMessage, WrongInputCount, WrongByteCount, NoSteps, MessageTooLarge: it makes no sense as a whole.
    """
    signature = model.file.signature
    handles = _numbers(request.handles, "handles")
    close, reset = _numbers(request.close, "close"), _numbers(request.reset, "reset")
    lengths: Ints | None = None
    steps = request.steps
    if request.lengths:
        lengths = _numbers(request.lengths, "lengths")
        if len(lengths) != len(handles):
            raise MalformedMessage(f"expected a length a handle, {len(handles)}, or none, got {len(lengths)}")
        if (lengths == lengths[0]).all():
            steps, lengths = int(lengths[0]), None
    fork = _numbers(request.fork, "fork")
    for name, numbers in (("handles", handles), ("close", close), ("reset", reset), ("fork", fork)):
        if len(numbers) > model.max_sessions:
            raise MalformedMessage(
                f"`{name}` has {len(numbers)} handles; this model has {model.max_sessions} sessions at most"
            )
    if len(handles) == 0:
        if request.inputs or request.lengths:
            raise MalformedMessage("the frame carries inputs or lengths, but no handles")
    elif lengths is None and len(request.inputs) == len(signature.inputs):
        given = len(request.inputs[0])
        # Bytes for less than a timestep a row are a wrong number of bytes, not no timestep.
        steps = steps or max(given // (signature.inputs[0].step_bytes * len(handles)), min(given, 1))
        if not steps and not request.lengths:
            raise NoSteps("each row needs at least one timestep")
    frame = Frame(
        handles=handles,
        lengths=lengths,
        steps=steps if len(handles) else 0,
        inputs=(),
        output=output_mode(request.output_mode, default),
        tag=request.tag,
        number=number,
        answered=request.answered if request.HasField("answered") else None,
        close=close,
        reset=reset,
        open_count=request.open_sessions,
        fork=fork,
        snapshot=request.snapshot,
    )
    if len(handles):
        frame.inputs = _inputs(request, signature, frame)
        _check_reply(signature, frame)
        _refuse_lengths(frame, limits.max_steps_per_message)
        _refuse_values(signature, frame, limits.allow_non_finite)
    return frame


def _numbers(data: bytes, name: str) -> Ints:
    """Packed uint32 as int64[n]."""
    if len(data) % _UINT32.itemsize:
        raise MalformedMessage(f"`{name}` is packed uint32, 4 bytes each; got {len(data)} bytes")
    return np.frombuffer(data, _UINT32).astype(np.int64)


def _inputs(request: pb.FrameRequest, signature: Signature, frame: Frame) -> tuple[Bytes, ...]:
    if len(request.inputs) != len(signature.inputs):
        names = ", ".join(tensor.name for tensor in signature.inputs)
        raise WrongInputCount(
            f"expected {len(signature.inputs)} inputs ({names}), got {len(request.inputs)}",
            expected=len(signature.inputs),
            got=len(request.inputs),
        )
    inputs = []
    for tensor, payload in zip(signature.inputs, request.inputs, strict=True):
        if len(payload) != frame.total * tensor.step_bytes:
            raise WrongByteCount(
                f"input {tensor.name!r}: {len(frame.handles)} rows of {frame.total} timesteps in all take "
                f"{frame.total * tensor.step_bytes} bytes, got {len(payload)}",
                input=tensor.name,
                step_bytes=tensor.step_bytes,
                got=len(payload),
            )
        inputs.append(np.frombuffer(payload, np.uint8).reshape(-1, tensor.step_bytes))
    return tuple(inputs)


def _check_reply(signature: Signature, frame: Frame) -> None:
    steps = {Output.ALL: frame.total, Output.LAST: len(frame.handles), Output.NONE: 0}[frame.output]
    size = steps * sum(tensor.step_bytes for tensor in signature.outputs)
    if size > _MAX_REPLY_BYTES:
        raise MessageTooLarge(
            f"this frame's outputs would take {size} bytes, a reply may have {_MAX_REPLY_BYTES}",
            limit=_MAX_REPLY_BYTES,
            got=size,
        )


def _refuse_lengths(frame: Frame, limit: int) -> None:
    bad: Iterable[int]
    if frame.lengths is None:
        bad = range(len(frame.handles)) if not 0 < frame.steps <= limit else ()
    else:
        bad = np.flatnonzero((frame.lengths < 1) | (frame.lengths > limit)).tolist()
    for row in bad:
        got = frame.steps if frame.lengths is None else int(frame.lengths[row])
        if got:
            text = f"a row may carry {limit} timesteps, this one carries {got}"
            frame.refuse(row, TooManySteps(text, limit=limit, got=got))
        else:
            frame.refuse(row, NoSteps("each row needs at least one timestep"))


def _refuse_values(signature: Signature, frame: Frame, allow_non_finite: bool) -> None:
    """Refuse rows that hold forbidden values."""
    check = ValueCheck(signature, allow_non_finite=allow_non_finite)
    steps = check.bad_steps(frame.inputs)
    if not steps:
        return
    for row in np.unique(np.searchsorted(frame.begins, steps, "right") - 1).tolist():
        count = int(frame.steps if frame.lengths is None else frame.lengths[row])
        begin = int(frame.begins[row])
        payloads = tuple(data[begin : begin + count].tobytes() for data in frame.inputs)
        if (error := check.first_bad(Work(payloads, count, Output.NONE, 0, 0.0))) is not None:
            frame.refuse(row, error)
