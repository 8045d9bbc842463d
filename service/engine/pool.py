"""The state pool: one row a session in every state tensor, on the device, for the session's whole life."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from streamcell.service.durability.journal import Journal
from streamcell.service.graph.pooled import PoolTensor
from streamcell.service.graph.rows import INITIAL_ROW
from streamcell.service.load_errors import DeviceError

from .card_lock import alone
from .device import Device

# Makes a journal, given the pool's first slot, and dtype and shape of one row of each state.
MakeJournal: TypeAlias = Callable[[int, Sequence[tuple[np.dtype[Any], tuple[int, ...]]]], Journal]


class StatePool:
    """The device tensors that hold every session's state, each of shape [rows, *state_shape].

    Row 0 is the initial state, the next `scratch` rows are for padding, the rest are slots. On the CPU the
    tensors are zero pages until a session writes them, so unused slots take no memory.
    """

    def __init__(
        self,
        tensors: Sequence[PoolTensor],
        *,
        slots: int,
        scratch: int,
        device: Device,
        make_journal: MakeJournal | None = None,
    ) -> None:
        """Make the tensors.

        Args:
            tensors: one for each state.
            slots: rows that sessions may have; twice as many if there is a journal, which has two for each session.
            scratch: rows for padding.
            device: where they are.
            make_journal: makes the file that holds them, if sessions outlive the process; for the CPU alone.
        """
        self.first_slot = 1 + scratch
        self.scratch_rows = np.arange(1, 1 + scratch, dtype=np.int64)
        self._tensors = tuple(tensors)
        self._device = device
        self.journal: Journal | None = None
        self.rows = self.first_slot + slots
        if slots and make_journal is not None:
            shapes = [(tensor.dtype, tensor.shape) for tensor in self._tensors]
            self.journal = make_journal(self.first_slot, shapes)
            self.rows = self.journal.counts.rows
            arrays = self.journal.states
        else:
            arrays = [np.zeros((self.rows, *tensor.shape), tensor.dtype) for tensor in self._tensors]
        for array, tensor in zip(arrays, self._tensors, strict=True):
            array[INITIAL_ROW] = tensor.initial
        self._values: list[ort.OrtValue] = [device.place(array) for array in arrays]
        if self.journal is not None and not all(
            value.data_ptr() == array.ctypes.data for value, array in zip(self._values, arrays, strict=True)
        ):
            raise DeviceError(
                f"device {device}: its states cannot be kept in files; serve on the CPU, or without"
            )

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
