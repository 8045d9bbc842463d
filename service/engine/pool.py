"""The state pool: one row a session in every state tensor, on the device, for the session's whole life."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from streamcell.service.graph.pooled import PoolTensor
from streamcell.service.graph.rows import INITIAL_ROW

from .card_lock import alone
from .device import Device


class StatePool:
    """The device tensors that hold every session's state, each of shape [rows, *state_shape].

    Row 0 is the initial state, the next `scratch` rows are for padding, the rest are slots. On the CPU the
    tensors are zero pages until a session writes them, so unused slots take no memory.
    """

    def __init__(self, tensors: Sequence[PoolTensor], *, slots: int, scratch: int, device: Device) -> None:
        self.first_slot = 1 + scratch
        self.rows = self.first_slot + slots
        self.scratch_rows = np.arange(1, 1 + scratch, dtype=np.int64)
        self._tensors = tuple(tensors)
        self._device = device
        self._values: list[ort.OrtValue] = []
        for tensor in self._tensors:
            host = np.zeros((self.rows, *tensor.shape), tensor.dtype)
            host[INITIAL_ROW] = tensor.initial
            self._values.append(device.place(host))

    @property
    def slot_bytes(self) -> int:
        """Bytes that one slot takes."""
        return sum(
            int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
            for tensor in self._tensors
        )

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind each tensor as the graph's pool input and pool output: the same memory, updated in place."""
        for tensor, value in zip(self._tensors, self._values, strict=True):
            binding.bind_ortvalue_input(tensor.input, value)
            binding.bind_ortvalue_output(tensor.output, value)

    def read(self, row: int) -> tuple[np.ndarray[Any, Any], ...]:
        """A copy of one row of every state tensor, for inspection. On a card this copies the whole pool."""
        with alone(self._device):
            return tuple(value.numpy()[row].copy() for value in self._values)
