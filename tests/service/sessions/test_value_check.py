"""Values that may run: the same answer as numpy's for any bits, and no warning about them in the log."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from streamcell.card import Signature, Tensor
from streamcell.service.errors import NonFiniteInput
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.value_check import ValueCheck

WIDTH = 512
PATTERNS = ("random bits", "the largest finite", "infinities of both signs", "nan", "small")


def rows(dtype: str, pattern: str) -> np.ndarray:
    """[4, 3, WIDTH] values."""
    rng = np.random.default_rng(1)
    shape = (4, 3, WIDTH)
    if pattern == "random bits":  # what perf_analyzer sends as its random data
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(rng.bytes(size), dtype).reshape(shape)
    values = rng.standard_normal(shape).astype(dtype)
    if pattern == "the largest finite":
        values[:] = np.finfo(dtype).max
    elif pattern != "small":
        values[1, 0, :2] = [np.inf, -np.inf] if pattern != "nan" else np.nan
    return values


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_bits_are_judged_without_a_warning(dtype: str, pattern: str) -> None:
    x = Tensor(name="x", dtype=dtype, step_shape=(WIDTH,))
    signature = Signature(inputs=(x,), outputs=(x.model_copy(update={"name": "y"}),), states=())
    check = ValueCheck(signature, allow_non_finite=False)
    values = rows(dtype, pattern)
    fine = np.isfinite(values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check.bad_rows([values], 4) == np.flatnonzero(~fine.all(axis=(1, 2))).tolist()
        steps = values.reshape(12, WIDTH).view(np.uint8)
        assert check.bad_steps([steps]) == np.flatnonzero(~fine.all(axis=2).reshape(-1)).tolist()
        for row, good in zip(values, fine, strict=True):
            error = check.first_bad(Work((row.tobytes(),), 3, Output.ALL, 0, 0.0))
            assert isinstance(error, NonFiniteInput) is not good.all()
