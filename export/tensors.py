"""Conversions between PyTorch's tensors and numpy's arrays, and a bound on PyTorch's threads during an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Float64 = NDArray[np.float64]


def as_float64(tensor: torch.Tensor) -> Float64:
    """A float64 copy: folding is done in double precision and rounded once."""
    return np.asarray(tensor.detach().cpu().double().numpy(), np.float64)


def as_array(tensor: torch.Tensor) -> Array:
    """The tensor as a numpy array of the same dtype."""
    array: Array = tensor.detach().cpu().numpy()
    return array


def as_tensor(array: Array) -> torch.Tensor:
    """A tensor that shares nothing with `array`."""
    return torch.from_numpy(np.array(array, copy=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: what a proof runs is small, and threads that wait for each other on a machine with
    other work take a hundred times as long as the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
