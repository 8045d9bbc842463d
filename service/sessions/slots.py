"""The rows of a state pool, and who has which."""

from __future__ import annotations

from typing import Any

import numpy as np

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
