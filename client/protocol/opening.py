"""Encodes the inputs set at a session's opening."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from streamcell.client.errors import InvalidInput
from streamcell.proto import pb

from .tensors import holds_arrays

# By name: an array of the dtype in `Model.open_inputs`, or Python numbers in nested lists: floats are sent as float32,
# ints as int64.
OpenInputs: TypeAlias = Mapping[str, Any] | None


def open_inputs(inputs: OpenInputs, *, one_row: bool = False) -> list[pb.OpenInput]:
    """The wire messages of `inputs`; with `one_row` each value gets a first axis of size 1.

    Raises:
        InvalidInput: WRONG_DTYPE or WRONG_SHAPE, if a value is not an array of numbers. The server checks the rest.
    """
    found = []
    for name, value in (inputs or {}).items():
        array = _array(name, value)
        shape = (1, *array.shape) if one_row else array.shape
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        found.append(pb.OpenInput(name=name, value=data, dtype=array.dtype.name, shape=shape))
    return found


def _array(name: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InvalidInput(f"input {name!r} of the opening: {error}", reason="WRONG_SHAPE") from None
    if array.dtype.kind not in "biuf":
        raise InvalidInput(
            f"input {name!r} of the opening: expected numbers, got {array.dtype}", reason="WRONG_DTYPE"
        )
    if array.dtype == np.float64 and not (hasattr(value, "__array__") or holds_arrays(value)):
        return array.astype(np.float32)
    return array
