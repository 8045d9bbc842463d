"""Which values a model's inputs may hold: finite ones, unless the server allows all; bools that are 0 or 1; indices
that are in the tables that they index.

One rule an input decides, for a batch in the staging buffers as for one message. The rule sees whole arrays; the error
text is made from the first bad value's place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from streamcell.card import Signature, Tensor
from streamcell.service.errors import (
    IndexOutOfRange,
    InvalidArgument,
    MalformedMessage,
    NonFiniteInput,
    WrongByteCount,
)

from .session import Work

Array: TypeAlias = np.ndarray[Any, Any]
Truths: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


class ValueRule(Protocol):
    """The rule for the values of one input. The last axes of `values` are those of a timestep."""

    @property
    def error(self) -> type[InvalidArgument]:
        """The error for a message with a forbidden value."""

    def fine(self, values: Array) -> bool:
        """True if every value is allowed; one fast pass. `values` is contiguous."""

    def inside(self, values: Array) -> Truths:
        """bool, shaped like `values`: which values are allowed."""

    def wanted(self, element: int) -> str:
        """What a timestep's `element` may hold, as text."""


class _Finite:
    @property
    def error(self) -> type[InvalidArgument]:
        return NonFiniteInput

    def fine(self, values: Array) -> bool:
        flat = values.reshape(-1)
        # Any NaN or infinity shows in the sum of squares. Large numbers may overflow it; then each value is checked.
        # `vdot` is the same product as `dot` and does not warn of the overflow.
        return math.isfinite(np.vdot(flat, flat)) or bool(self.inside(values).all())

    def inside(self, values: Array) -> Truths:
        return np.isfinite(values)

    def wanted(self, element: int) -> str:
        return "finite values"


class _ZeroOrOne:
    @property
    def error(self) -> type[InvalidArgument]:
        return MalformedMessage

    def fine(self, values: Array) -> bool:
        return bool(self.inside(values).all())

    def inside(self, values: Array) -> Truths:
        return np.asarray(values.view(np.uint8) <= 1)

    def wanted(self, element: int) -> str:
        return "bytes that are 0 or 1"


class _Index:
    """Indices within their ranges, from the graph or the card: see `graph/index_ranges.py`."""

    @property
    def error(self) -> type[InvalidArgument]:
        return IndexOutOfRange

    def __init__(self, tensor: Tensor) -> None:
        dtype = np.dtype(tensor.dtype)
        low, high = zip(*tensor.index_ranges, strict=True)
        shape = tensor.step_shape if len(low) > 1 else (1,)
        self._low: Array = np.array(low, dtype).reshape(shape)
        self._high: Array = np.array(high, dtype).reshape(shape)
        self._unsigned = np.dtype(f"u{dtype.itemsize}")
        # Subtracting the lowest value in unsigned arithmetic makes a value below it larger than any allowed one.
        self._span = self._high.view(self._unsigned) - self._low.view(self._unsigned)
        self._one = len(low) == 1
        self._from_zero = not self._low.any()

    def fine(self, values: Array) -> bool:
        counted = (values if self._from_zero else values - self._low).view(self._unsigned)
        if self._one:
            return bool(np.maximum.reduce(counted, axis=None) <= self._span[0])
        return not (counted > self._span).any()

    def inside(self, values: Array) -> Truths:
        return np.asarray((values >= self._low) & (values <= self._high))

    def wanted(self, element: int) -> str:
        low, high = [int(bound.reshape(-1)[0 if self._one else element]) for bound in (self._low, self._high)]
        return f"an index from {low} to {high}"


_FINITE, _ZERO_OR_ONE = _Finite(), _ZeroOrOne()


def _rule(tensor: Tensor, allow_non_finite: bool) -> ValueRule | None:
    """The rule for one input; None if every value is allowed."""
    kind = np.dtype(tensor.dtype).kind
    if kind == "f":
        return None if allow_non_finite else _FINITE
    if kind == "b":
        return _ZERO_OR_ONE
    return _Index(tensor) if tensor.index_ranges else None


class ValueCheck:
    """The rules of one model's inputs."""

    def __init__(self, signature: Signature, *, allow_non_finite: bool) -> None:
        self._tensors = signature.inputs
        self._rules = [_rule(tensor, allow_non_finite) for tensor in signature.inputs]

    def bad_rows(self, inputs: Sequence[Array], used: int) -> list[int]:
        """Which of the first `used` rows hold a forbidden value. `inputs`: [rows, …] each."""
        bad: set[int] = set()
        for array, rule in zip(inputs, self._rules, strict=True):
            if rule is None:
                continue
            rows = array if used == len(array) else array[:used]
            if not rule.fine(rows):
                bad.update(np.flatnonzero(~rule.inside(rows).reshape(used, -1).all(axis=1)).tolist())
        return sorted(bad)

    def bad_steps(self, inputs: Sequence[Array]) -> list[int]:
        """Which timesteps hold a forbidden value. `inputs`: uint8[steps, step_bytes] each."""
        bad: set[int] = set()
        for tensor, data, rule in zip(self._tensors, inputs, self._rules, strict=True):
            if rule is None:
                continue
            values = data.view(tensor.dtype).reshape(-1, *tensor.step_shape)
            if not rule.fine(values):
                steps = rule.inside(values).reshape(len(values), -1).all(axis=1)
                bad.update(np.flatnonzero(~steps).tolist())
        return sorted(bad)

    def first_bad(self, work: Work, *, steps_before: int = 0) -> InvalidArgument | None:
        """The error for the first forbidden value in `work`'s payloads; None if all are allowed.

        `steps_before` is the number by which the error names the first step.
        """
        for tensor, payload, rule in zip(self._tensors, work.payloads, self._rules, strict=True):
            if (
                rule is not None
                and (error := _first(rule, tensor, payload, "step", steps_before)) is not None
            ):
                return error
        return None


def first_bad_value(tensor: Tensor, data: bytes, *, allow_non_finite: bool) -> InvalidArgument | None:
    """The error for the first forbidden value in `data`, which holds [rows, *step_shape]; None if all are allowed."""
    rule = _rule(tensor, allow_non_finite)
    return None if rule is None else _first(rule, tensor, data, "row", 0)


def _first(rule: ValueRule, tensor: Tensor, data: bytes, what: str, before: int) -> InvalidArgument | None:
    """The error for the first value that breaks `rule`; `before` is added to the number of its step or row."""
    values = np.frombuffer(data, tensor.dtype).reshape(-1, *tensor.step_shape)
    if rule.fine(values):
        return None
    first = int(np.argmin(rule.inside(values).reshape(-1)))
    place, element = divmod(first, math.prod(tensor.step_shape))
    place += before
    came = values.reshape(-1)[first] if values.dtype.kind != "b" else data[first]
    wanted = rule.wanted(element)
    facts: dict[str, object] = {"input": tensor.name, what: place, "element": element}
    if rule.error is IndexOutOfRange:
        facts |= {"expected": wanted, "got": came}
    return rule.error(
        f"input {tensor.name!r}: expected {wanted}, got {came} at {what} {place}, element {element}", **facts
    )


def check_length(signature: Signature, work: Work) -> WrongByteCount | None:
    """The error if a payload of `work` does not have the length of [steps, *step_shape], else None."""
    for tensor, payload in zip(signature.inputs, work.payloads, strict=True):
        expected = work.steps * tensor.step_bytes
        if len(payload) != expected:
            return WrongByteCount(
                f"input {tensor.name!r}: {work.steps} timesteps take {expected} bytes, got {len(payload)}",
                input=tensor.name,
                expected=expected,
                got=len(payload),
            )
    return None
