"""The random values that the proof of a model feeds, and how it compares what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from streamcell.card import OpenInput, Tensor

from .staging import resting

Array: TypeAlias = np.ndarray[Any, Any]

# Random inputs are standard normal, a neighbour's and one timestep's louder by this factor.
_LOUD = 100.0
# Differences allowed, in parts of the output's size at that timestep. Healthy float32 models differ by 1e-6, float16
# by 1e-2, a quantised one by a step of 1/127; what looks ahead or at its neighbours by 0.1 and more.
_TOLERANCE = {"float32": 0.03, "float64": 0.03, "float16": 0.06}
_LEAST = 1e-5
# Early, because a model may be late by some timesteps and all of them must lie in one chunk.
_LOUD_STEP = 2


def draw(rng: np.random.Generator, tensor: Tensor, rows: int, steps: int) -> Array:
    """Values [rows, steps, *step_shape] for `tensor`; odd rows are loud, and one timestep of rows 2, 6, 10, …."""
    shape = (rows, steps, *tensor.step_shape)
    if tensor.dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if not tensor.dtype.startswith("float"):
        low, high = np.array(tensor.index_ranges or ((0, 1),)).T
        low, high = (np.broadcast_to(b, (int(np.prod(tensor.step_shape)),)) for b in (low, high))
        sizes = (rows, steps, low.size)
        drawn = low + (rng.random(sizes) * (np.minimum(high - low, 2**40) + 1)).astype(np.int64)
        indices: Array = drawn.reshape(shape).astype(tensor.dtype)
        return indices
    values = rng.standard_normal(shape)
    values[1::2] *= _LOUD
    for index, row in enumerate(range(2, rows, 4)):
        place = row, min(_LOUD_STEP, steps - 1) if index % 2 == 0 else steps // 2
        values[place] += np.copysign(_LOUD, values[place])  # none of its elements is quiet by chance
    return values.astype(tensor.dtype)


def draw_given(rng: np.random.Generator, value: OpenInput, rows: int) -> Array:
    """Values for the opening, uint8[rows, bytes]: random ones, none of them loud, unless there is a default."""
    if value.default is not None:
        values = np.broadcast_to(resting(value), (rows, *value.step_shape))
    elif value.dtype.startswith("float"):
        values = rng.standard_normal((rows, *value.step_shape)).astype(value.dtype)
    else:
        values = draw(rng, value, rows, 1)
    return np.frombuffer(values.tobytes(), np.uint8).reshape(rows, -1)


def cuts(rng: np.random.Generator, steps: int, most: int) -> Iterator[int]:
    """Random parts that add up to `steps`, the first of two timesteps at least."""
    left, least = steps, min(2, most)
    while left:
        part = min(left, int(rng.integers(least, max(least, min(most, 5)) + 1)))
        yield part
        left, least = left - part, 1


def same(a: list[Array], b: list[Array]) -> bool:
    """Whether all values are equal; NaN equals NaN."""
    return all(np.array_equal(p, q, equal_nan=p.dtype.kind == "f") for p, q in zip(a, b, strict=True))


def worst(tensor: Tensor, expected: Array, got: Array, *, exact: bool = False) -> tuple[float, float] | None:
    """The two values that differ most, both [rows, steps, *step_shape]; None if they differ by rounding alone.

    With `exact`, two values that differ at all; None if there are none.
    """
    if exact:
        right, other = expected.reshape(-1).astype(np.float64), got.reshape(-1).astype(np.float64)
        differ = (right != other) & ~(np.isnan(right) & np.isnan(other))
        if not differ.any():
            return None
        with np.errstate(invalid="ignore"):
            off = np.nan_to_num(np.abs(right - other), nan=np.inf)
        at = int(np.argmax(np.where(differ, off, -1.0)))
        return float(right[at]), float(other[at])
    if expected.dtype.kind != "f":
        # A choice between two equals may fall either way; more than one in twenty are no such.
        wrong = expected != got
        if not wrong.size or wrong.mean() <= 0.05:
            return None
        at = int(np.argmax(wrong))
        return float(expected.reshape(-1)[at]), float(got.reshape(-1)[at])
    flat = (*expected.shape[:2], -1)
    a, b = expected.reshape(flat).astype(np.float64), got.reshape(flat).astype(np.float64)
    finite = np.isfinite(a)
    size = np.where(finite, np.abs(a), 0.0).max(axis=2, keepdims=True)
    # A timestep may cancel to almost nothing, but not one in five.
    size = np.maximum(size, np.quantile(size, 0.2, axis=1, keepdims=True, method="lower"))
    with np.errstate(invalid="ignore"):
        off = np.where(finite, np.abs(np.where(np.isfinite(b), b, np.inf) - np.where(finite, a, 0.0)), 0.0)
    excess = off - _TOLERANCE[tensor.dtype] * size - _LEAST
    at = int(np.argmax(excess))
    if excess.reshape(-1)[at] <= 0:
        return None
    return float(a.reshape(-1)[at]), float(b.reshape(-1)[at])
