"""What a message may hold: as many bytes as its steps take; finite values, unless the server allows all; bools 0 or 1;
indices in their table.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcell.card import Signature, Tensor
from streamcell.service.errors import (
    IndexOutOfRange,
    InvalidArgument,
    MalformedMessage,
    NonFiniteInput,
    WrongByteCount,
)

from .session import Work


def check_length(signature: Signature, work: Work) -> WrongByteCount | None:
    """What is wrong with the lengths of `work`'s payloads, which are to be [steps, *step_shape] each, or None."""
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


class IndexCheck:
    """Whether the values of one input are within their ranges: one pass over the array, whatever its size."""

    def __init__(self, tensor: Tensor) -> None:
        dtype = np.dtype(tensor.dtype)
        low, high = zip(*tensor.index_ranges, strict=True)
        shape = tensor.step_shape if len(low) > 1 else (1,)
        self.low: npt.NDArray[Any] = np.array(low, dtype).reshape(shape)
        self.high: npt.NDArray[Any] = np.array(high, dtype).reshape(shape)
        self._unsigned = np.dtype(f"u{dtype.itemsize}")
        # From the lowest value on, in unsigned numbers: what is below it is larger than any other.
        self._span = self.high.view(self._unsigned) - self.low.view(self._unsigned)
        self._one = len(low) == 1
        self._from_zero = not self.low.any()

    def fine(self, rows: npt.NDArray[Any]) -> bool:
        """Whether every value is; `rows` is contiguous and ends in the step's axes."""
        values = rows if self._from_zero else rows - self.low
        values = values.view(self._unsigned)
        if self._one:
            return bool(np.maximum.reduce(values, axis=None) <= self._span[0])
        return not (values > self._span).any()

    def inside(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which values are."""
        inside: npt.NDArray[np.bool_] = (rows >= self.low) & (rows <= self.high)
        return inside

    def wanted(self, element: int) -> str:
        """The range of an element, in words."""
        low, high = (int(bound.reshape(-1)[0 if self._one else element]) for bound in (self.low, self.high))
        return f"an index from {low} to {high}"


@lru_cache(1024)
def index_check(tensor: Tensor) -> IndexCheck | None:
    """The check of an input's indices; None where it is not known to be one."""
    return IndexCheck(tensor) if tensor.index_ranges else None


def check_values(
    signature: Signature, work: Work, allow_non_finite: bool, *, steps_before: int = 0
) -> InvalidArgument | None:
    """What is wrong with the values of `work`'s payloads, naming the first bad one, or None.

    The first step is told as number `steps_before`.
    """
    for tensor, payload in zip(signature.inputs, work.payloads, strict=True):
        dtype = np.dtype(tensor.dtype)
        error: type[InvalidArgument]
        check = None
        if dtype.kind == "f" and not allow_non_finite:
            fine = np.isfinite(np.frombuffer(payload, dtype))
            error, wanted = NonFiniteInput, "finite values"
        elif dtype.kind == "b":
            fine = np.frombuffer(payload, np.uint8) <= 1
            error, wanted = MalformedMessage, "bytes that are 0 or 1"
        elif (check := index_check(tensor)) is not None:
            fine = check.inside(np.frombuffer(payload, dtype).reshape(-1, *tensor.step_shape)).reshape(-1)
            error = IndexOutOfRange
        else:
            continue
        if not fine.all():
            first = int(np.argmin(fine))
            step, element = divmod(first, max(1, fine.size // work.steps))
            step += steps_before
            came = np.frombuffer(payload, np.uint8 if dtype.kind == "b" else dtype)[first]
            facts: dict[str, object] = {"input": tensor.name, "step": step, "element": element}
            if check is not None:
                wanted = check.wanted(element)
                facts |= {"expected": wanted, "got": came}
            return error(
                f"input {tensor.name!r}: expected {wanted}, got {came} at step {step}, element {element}",
                **facts,
            )
    return None
