"""Converts one tensor between numpy and the wire: only safe casts, and exact shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcell.client.errors import InvalidInput, ServerFault

Array: TypeAlias = npt.NDArray[Any]
# Names of the leading axes, by their number, for error texts.
Axes: TypeAlias = Sequence[tuple[str, ...]]
SEQUENCES: Axes = ((), ("steps",), ("batch", "steps"))


class TensorCodec:
    """Encodes and decodes the tensor `name` of dtype `dtype` and shape `[*leading, *step_shape]`.

    `leading` is () for one timestep, (steps,) for a chunk, (batch, steps) for a batch of sequences.
    """

    __slots__ = ("_rank", "_size", "_wire", "dtype", "name", "step_shape")

    def __init__(self, name: str, dtype: str, step_shape: Sequence[int]) -> None:
        """Raises ServerFault if numpy has no such dtype: the server is newer than this client."""
        try:
            self.dtype: np.dtype[Any] = np.dtype(dtype)
        except TypeError:
            raise ServerFault(
                f"tensor {name!r} has dtype {dtype!r}, which this client does not know",
                reason="UNKNOWN_DTYPE",
            ) from None
        self.name = name
        self.step_shape = tuple(step_shape)
        self._wire = self.dtype.newbyteorder("<")
        self._rank = len(self.step_shape)
        self._size = math.prod(self.step_shape) * self.dtype.itemsize

    def encode(
        self, value: Any, ranks: tuple[int, ...], axes: Axes = SEQUENCES
    ) -> tuple[bytes, tuple[int, ...]]:
        """`value` as little-endian bytes in C order, and its leading shape.

        `value` is an array of this dtype or of one that numpy casts to it safely, or Python numbers in (nested)
        lists or tuples. `ranks`: the allowed numbers of leading axes; `axes`: the axes' names by number.

        Raises:
            InvalidInput: WRONG_DTYPE or WRONG_SHAPE.
        """
        if type(value) is not np.ndarray or value.dtype != self._wire:
            value = self._convert(value)
        shape: tuple[int, ...] = value.shape
        rank = len(shape) - self._rank
        if rank not in ranks or shape[rank:] != self.step_shape:
            raise self._wrong_shape(shape, ranks, axes)
        return value.tobytes(), shape[:rank]

    def decode(self, data: bytes, leading: tuple[int, ...]) -> Array:
        """A writable array `[*leading, *step_shape]` of the native byte order."""
        if len(data) != math.prod(leading) * self._size:
            raise ServerFault(
                f"output {self.name!r}: {self.dtype}{[*leading, *self.step_shape]} takes "
                f"{math.prod(leading) * self._size} bytes, the reply has {len(data)}",
                reason="MALFORMED_REPLY",
            )
        return np.ndarray((*leading, *self.step_shape), self._wire, data).astype(self.dtype)

    def _convert(self, value: Any) -> Array:
        try:
            array = np.asarray(value)
        except ValueError as error:  # rows of different lengths
            raise InvalidInput(f"input {self.name!r}: {error}", reason="WRONG_SHAPE") from None
        if hasattr(value, "dtype") or hasattr(value, "__array__") or holds_arrays(value):
            if not np.can_cast(array.dtype, self.dtype, "safe"):
                raise self._wrong_dtype(str(array.dtype), f": convert it with .astype({str(self.dtype)!r})")
            return array.astype(self._wire)
        return self._from_numbers(value, array)

    def _from_numbers(self, value: Any, array: Array) -> Array:
        """Python numbers have no width of their own: any float goes into a float dtype, an int if it fits.

        `array` is `value` as numpy reads it; numpy reads ints beyond int64 as floats or objects.
        """
        source, target = array.dtype.kind, self.dtype.kind
        if not array.size:
            return array.astype(self._wire)
        if target == "f" and source in "fiub":
            with np.errstate(over="ignore"):
                narrowed = array.astype(self._wire)
            if not np.array_equal(np.isfinite(array), np.isfinite(narrowed)):
                raise self._wrong_dtype("numbers beyond its range")
            return narrowed
        if target in "iu":
            exact = array if source in "iub" else np.asarray(value, object)
            if source in "iub" or all(isinstance(number, int) for number in exact.flat):
                info = np.iinfo(self.dtype)
                if exact.min() < info.min or exact.max() > info.max:
                    raise self._wrong_dtype(f"numbers outside {info.min} to {info.max}")
                return exact.astype(self._wire)
        if target == source == "b":
            return array
        named = {"f": "floats", "i": "ints", "u": "ints", "b": "bools", "U": "text"}
        raise self._wrong_dtype(named.get(source, "objects"))

    def _wrong_dtype(self, got: str, hint: str = "") -> InvalidInput:
        return InvalidInput(
            f"input {self.name!r}: expected {self.dtype}, got {got}{hint}",
            reason="WRONG_DTYPE",
            metadata={"input": self.name, "expected": str(self.dtype), "got": got},
        )

    def _wrong_shape(self, shape: tuple[int, ...], ranks: tuple[int, ...], axes: Axes) -> InvalidInput:
        step = tuple(map(str, self.step_shape))
        expected = " or ".join(f"[{', '.join((*axes[rank], *step))}]" for rank in ranks)
        return InvalidInput(
            f"input {self.name!r}: expected shape {expected}, got {list(shape)}",
            reason="WRONG_SHAPE",
            metadata={"input": self.name, "expected": expected, "got": str(list(shape))},
        )


def holds_arrays(value: Any) -> bool:
    """True if nested lists contain numpy values, whose dtypes must be respected."""
    if isinstance(value, (list, tuple)):
        return any(holds_arrays(item) for item in value)
    return hasattr(value, "dtype")
