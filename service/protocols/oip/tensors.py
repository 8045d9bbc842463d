"""Tensors of the Open Inference Protocol: dtypes, typed contents, and what a request's shapes mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamcell.card import OpenInput, Signature, Tensor
from streamcell.service.errors import (
    NoSteps,
    WrongByteCount,
    WrongContents,
    WrongDtype,
    WrongInputCount,
    WrongShape,
    cut,
)
from streamcell.service.protocols.common.openings import Given

# numpy's name → the protocol's name and the field of typed contents; FP16 has no such field.
_TYPES = {
    "bool": ("BOOL", "bool_contents"),
    "uint8": ("UINT8", "uint_contents"),
    "uint16": ("UINT16", "uint_contents"),
    "uint32": ("UINT32", "uint_contents"),
    "uint64": ("UINT64", "uint64_contents"),
    "int8": ("INT8", "int_contents"),
    "int16": ("INT16", "int_contents"),
    "int32": ("INT32", "int_contents"),
    "int64": ("INT64", "int64_contents"),
    "float16": ("FP16", ""),
    "float32": ("FP32", "fp32_contents"),
    "float64": ("FP64", "fp64_contents"),
}
DATATYPES = {name: datatype for name, (datatype, _) in _TYPES.items()}


def dims(signature: Signature, tensor: Tensor) -> list[int]:
    """A tensor's shape without the batch, as metadata and configuration give it.

    A model with state is described by one timestep, as Triton describes it: [*step_shape]. A stateless model that
    takes several timesteps has a time axis of open size: [-1, *step_shape].
    """
    if signature.states or not signature.has_time:
        return [*tensor.step_shape]
    return [-1, *tensor.step_shape]


@dataclass(frozen=True)
class RequestShape:
    """A request's layout: the axes `lead` come before a step's own shape.

    [] is one timestep; [N] is N timesteps, or N rows of one if the model is stateless and takes no time axis;
    [B, T] is B rows of T timesteps. The reply has the same layout.
    """

    lead: tuple[int, ...]
    rows: int
    steps: int


def form(signature: Signature, inputs: Sequence[Any]) -> RequestShape:
    """The request's layout by its inputs' shapes, in the signature's order.

    Raises:
        WrongShape: a shape does not fit, or they do not agree.
        NoSteps: there is no element.
    """
    leads = []
    for tensor, given in zip(signature.inputs, inputs, strict=True):
        shape = tuple(given.shape)
        lead = shape[: len(shape) - len(tensor.step_shape)]
        if shape[len(lead) :] != tensor.step_shape or len(lead) > 2 or any(size < 0 for size in lead):
            expected = f"[{', '.join(map(str, (-1, *dims(signature, tensor))))}]"
            raise WrongShape(
                f"unexpected shape for input {tensor.name!r}: expected {expected}, got {cut([*shape])}",
                input=tensor.name,
                expected=expected,
                got=[*shape],
            )
        leads.append(lead)
    lead = leads[0]
    if any(other != lead for other in leads):
        raise WrongShape(
            "all inputs must have the same number of rows and timesteps; before a step's own shape they have "
            + ", ".join(f"{t.name!r} {cut([*each])}" for t, each in zip(signature.inputs, leads, strict=True))
        )
    if not math.prod(lead):
        raise NoSteps(
            f"input {signature.inputs[0].name!r} is empty: each request needs at least one timestep"
        )
    if len(lead) == 2:
        return RequestShape(lead, *lead)
    alone = bool(signature.states) or signature.has_time
    count = math.prod(lead)
    return RequestShape(lead, 1, count) if alone else RequestShape(lead, count, 1)


def payloads(signature: Signature, request: Any) -> tuple[list[Any], tuple[bytes, ...], tuple[Given, ...]]:
    """A request's inputs, in the signature's order, the bytes of each, and what it gives for the opening.

    Raises:
        InvalidArgument: inputs are missing, unknown, repeated, of a wrong dtype, or incomplete.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise WrongInputCount(
            f"expected {len(request.inputs)} raw_input_contents, one an input, got {len(raw)}",
            expected=len(request.inputs),
            got=len(raw),
        )
    names = [tensor.name for tensor in signature.inputs]
    opens = {value.name: value for value in signature.open_inputs}
    # There may be a million of them.
    fits = len(names) <= len(request.inputs) <= len(names) + len(opens)
    given, opening = {}, []
    if fits:
        pairs = [(tensor, raw[at] if raw else None) for at, tensor in enumerate(request.inputs)]
        opening = [_given(opens[one.name], one, contents) for one, contents in pairs if one.name in opens]
        given = {one.name: (one, contents) for one, contents in pairs if one.name not in opens}
        fits = len(given) + len(opening) == len(pairs)
    if not fits or sorted(given) != sorted(names):
        raise WrongInputCount(
            f"expected the inputs {', '.join(names)}, each once, got "
            f"{', '.join(cut(tensor.name) for tensor in request.inputs[:8]) or 'none'}",
            expected=len(names),
            got=len(request.inputs),
        )
    inputs, data = [], []
    for tensor in signature.inputs:
        one, contents = given[tensor.name]
        inputs.append(one)
        data.append(_data(tensor, one, contents))
    return inputs, tuple(data), tuple(opening)


def _data(tensor: Tensor, one: Any, contents: bytes | None) -> bytes:
    """The bytes of a request's input; `contents` are its raw ones, None if it has typed ones."""
    if one.datatype != DATATYPES[tensor.dtype]:
        raise WrongDtype(
            f"input {tensor.name!r}: expected {DATATYPES[tensor.dtype]}, got {cut(one.datatype) or 'no datatype'}",
            input=tensor.name,
            expected=DATATYPES[tensor.dtype],
            got=one.datatype,
        )
    if contents is not None and one.HasField("contents"):
        raise WrongContents(
            f"input {tensor.name!r}: contents must not be given together with raw_input_contents",
            input=tensor.name,
        )
    return _typed(tensor, one.contents) if contents is None else contents


def _given(value: OpenInput, one: Any, contents: bytes | None) -> Given:
    """What a session is given by its first request; for one session the batch axis may be left out."""
    shape = tuple(one.shape)
    if shape == value.step_shape:
        shape = (1, *shape)
    return Given(value.name, _data(value, one, contents), shape=shape)


def check_bytes(signature: Signature, data: Sequence[bytes], form: RequestShape) -> None:
    """Raise WrongByteCount unless each input has the bytes that its shape takes."""
    for tensor, payload in zip(signature.inputs, data, strict=True):
        expected = form.rows * form.steps * tensor.step_bytes
        if len(payload) != expected:
            shape = [*form.lead, *tensor.step_shape]
            raise WrongByteCount(
                f"input {tensor.name!r}: {DATATYPES[tensor.dtype]}{shape} takes {expected} bytes, got {len(payload)}",
                input=tensor.name,
                expected=expected,
                got=len(payload),
            )


def _typed(tensor: Tensor, contents: Any) -> bytes:
    field = _TYPES[tensor.dtype][1]
    filled = [name.name for name, _ in contents.ListFields()]
    if not field:
        if filled:
            raise WrongContents(f"input {tensor.name!r}: FP16 travels in raw_input_contents only")
        return b""
    if any(name != field for name in filled):
        raise WrongContents(
            f"input {tensor.name!r}: {DATATYPES[tensor.dtype]} goes in {field}, got {', '.join(filled)}",
            input=tensor.name,
            expected=field,
        )
    values = np.array(getattr(contents, field), np.int64 if "int_" in field else tensor.dtype)
    if "int_" in field:
        kind = np.iinfo(tensor.dtype)
        if values.size and not kind.min <= values.min() <= values.max() <= kind.max:
            raise WrongContents(
                f"input {tensor.name!r}: a value is outside what {DATATYPES[tensor.dtype]} can be",
                input=tensor.name,
            )
    return values.astype(f"<{np.dtype(tensor.dtype).str[1:]}").tobytes()
