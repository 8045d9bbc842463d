"""The state pool: one row a session in every state tensor, on the device, for the session's whole life."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from .device import Device
from .rewrite import PoolTensor

# Row 0 holds the initial state. It is read by every session's first step and never written.
INITIAL_ROW = 0


class SlotAllocator:
    """Hands out the rows `first … first + count - 1`, lowest first; a row's generation counts its owners."""

    def __init__(self, first: int, count: int) -> None:
        self._first = first
        self._free = list(range(first + count - 1, first - 1, -1))
        self._generation = np.zeros(count, np.int64)
        self._taken = np.zeros(count, np.bool_)

    def take(self) -> tuple[int, int]:
        """A free slot and its new generation.

        Raises:
            RuntimeError: all are taken.
        """
        if not self._free:
            raise RuntimeError(f"all {len(self._taken)} slots are taken")
        slot = self._free.pop()
        at = slot - self._first
        self._taken[at] = True
        self._generation[at] += 1
        return slot, int(self._generation[at])

    def take_many(self, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """`count` free slots and their new generations, int64[count] each.

        Raises:
            RuntimeError: fewer are free.
        """
        if count > len(self._free):
            raise RuntimeError(f"{count} slots wanted, {len(self._free)} are free")
        keep = len(self._free) - count
        slots = np.array(self._free[keep:][::-1], np.int64)
        del self._free[keep:]
        at = slots - self._first
        self._taken[at] = True
        self._generation[at] += 1
        return slots, self._generation[at]

    def give_back(self, slot: int, generation: int) -> None:
        """Free `slot`.

        Raises:
            RuntimeError: the slot is not taken, or by another generation: it was freed twice.
        """
        at = slot - self._first
        if not 0 <= at < len(self._taken) or not self._taken[at] or self._generation[at] != generation:
            raise RuntimeError(f"slot {slot} (generation {generation}) was freed twice or never taken")
        self._taken[at] = False
        self._free.append(slot)

    def give_back_many(self, slots: np.ndarray[Any, Any], generations: np.ndarray[Any, Any]) -> None:
        """Free `slots`, all of them or, where one is wrong, none.

        Raises:
            RuntimeError: as for `give_back`, or a slot is named twice.
        """
        at = slots - self._first
        known = (at >= 0) & (at < len(self._taken))
        fine = known.all() and self._taken[at].all() and np.array_equal(self._generation[at], generations)
        if not fine or len(np.unique(at)) != len(at):
            raise RuntimeError(f"one of {len(slots)} slots was freed twice or never taken")
        self._taken[at] = False
        self._free.extend(slots[::-1].tolist())

    @property
    def used(self) -> int:
        """Slots taken now."""
        return len(self._taken) - len(self._free)


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
        return tuple(value.numpy()[row].copy() for value in self._values)
