"""Checks the inputs set at a session's opening, as far as that needs no session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from streamcell.card import OpenInput, Signature
from streamcell.proto import pb
from streamcell.service.errors import (
    MalformedMessage,
    MissingOpenInput,
    UnknownOpenInput,
    WrongByteCount,
    WrongDtype,
    WrongShape,
    cut,
    shown,
)
from streamcell.service.sessions.value_check import first_bad_value

# uint8[rows, bytes] for each open input, in the signature's order.
Openings: TypeAlias = tuple[np.ndarray[Any, np.dtype[np.uint8]], ...]


class Given(NamedTuple):
    """One value from a client; dtype or shape may be missing: then they are not checked."""

    name: str
    data: bytes
    dtype: str = ""
    shape: tuple[int, ...] = ()


def given_in(signature: Signature, inputs: Sequence[pb.OpenInput]) -> list[Given]:
    """The values of a message.

    There may be millions, and one more than the model takes is enough: among these, one is unknown or comes twice.
    """
    few = inputs[: len(signature.open_inputs) + 1]
    return [Given(each.name, each.value, each.dtype, tuple(each.shape)) for each in few]


def check_openings(
    signature: Signature,
    given: Sequence[Given],
    rows: int = 1,
    *,
    allow_non_finite: bool,
    batch: bool = False,
) -> Openings:
    """The values for `rows` sessions, with defaults for missing ones.

    Args:
        signature: the model's signature.
        given: the client's values.
        rows: number of sessions.
        allow_non_finite: True if floats may be NaN or infinite.
        batch: True if a declared shape begins with the number of sessions.

    Raises:
        UnknownOpenInput, MissingOpenInput, MalformedMessage, WrongDtype, WrongShape, WrongByteCount, NonFiniteInput,
        IndexOutOfRange: a value is wrong; the text names the input.
    """
    values = {each.name: each for each in given}
    known = {each.name for each in signature.open_inputs}
    for name in values:
        if name not in known:
            wanted = ", ".join(map(_described, signature.open_inputs)) or "none"
            raise UnknownOpenInput(
                f"no input {shown(name)} is given at the opening; this model's are: {cut(wanted)}", input=name
            )
    if len(values) < len(given):
        raise MalformedMessage("an input of the opening comes twice")
    return tuple(
        _value(each, values.get(each.name), rows, batch, allow_non_finite) for each in signature.open_inputs
    )


def row_openings(
    signature: Signature, given: Sequence[Given], rows: int, *, allow_non_finite: bool
) -> Iterator[tuple[bytes, ...]]:
    """Like `check_openings`, for the rows of one request: by row, as bytes; nothing if the model has no such input.

    All is checked at once, but a row's bytes are made when they are asked for: there may be far more rows than slots.
    """
    openings = check_openings(signature, given, rows, allow_non_finite=allow_non_finite, batch=True)
    return map(_as_bytes, zip(*openings, strict=True))


def _as_bytes(row: Iterable[np.ndarray[Any, Any]]) -> tuple[bytes, ...]:
    return tuple(value.tobytes() for value in row)


def check_opening(
    signature: Signature, given: Sequence[Given], *, allow_non_finite: bool
) -> tuple[bytes, ...]:
    """Like `check_openings`, for one session."""
    openings = check_openings(signature, given, allow_non_finite=allow_non_finite)
    return _as_bytes(openings)


def _described(each: OpenInput) -> str:
    return f"{each.name} {each.dtype}{list(each.step_shape)}"


def _value(
    wanted: OpenInput, given: Given | None, rows: int, batch: bool, allow_non_finite: bool
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8[rows, bytes]."""
    size = wanted.step_bytes
    if given is None:
        if wanted.default is None:
            raise MissingOpenInput(
                f"this model's sessions are given {_described(wanted)} when they open; send it with the opening",
                input=wanted.name,
                expected=_described(wanted),
            )
        one = np.broadcast_to(np.asarray(wanted.default).astype(wanted.dtype), wanted.step_shape)
        return np.broadcast_to(np.frombuffer(one.tobytes(), np.uint8), (rows, size))
    if given.dtype and given.dtype != wanted.dtype:
        raise WrongDtype(
            f"input {wanted.name!r} of the opening: expected {wanted.dtype}, got {cut(given.dtype)}; convert it",
            input=wanted.name,
            expected=wanted.dtype,
            got=given.dtype,
        )
    shape = (rows, *wanted.step_shape) if batch else wanted.step_shape
    if given.shape and given.shape != shape:
        raise WrongShape(
            f"input {wanted.name!r} of the opening: expected shape {list(shape)}, got {cut(list(given.shape))}",
            input=wanted.name,
            expected=list(shape),
            got=list(given.shape),
        )
    if len(given.data) != rows * size:
        raise WrongByteCount(
            f"input {wanted.name!r} of the opening: {wanted.dtype}{list(shape)} takes {rows * size} bytes, "
            f"got {len(given.data)}",
            input=wanted.name,
            expected=rows * size,
            got=len(given.data),
        )
    if (error := first_bad_value(wanted, given.data, allow_non_finite=allow_non_finite)) is not None:
        raise error
    return np.frombuffer(given.data, np.uint8).reshape(rows, size)
