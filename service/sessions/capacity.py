"""A model's room for sessions: the bound on live sessions, and the slots that they hold."""

from __future__ import annotations

import threading
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcell.service.errors import ModelUnloading, SessionLimit

Ints: TypeAlias = npt.NDArray[np.int64]


class SlotAllocator:
    """Hands out the rows `first … first + count - 1`, lowest first; a row's slot_version counts its owners."""

    def __init__(self, first: int, count: int) -> None:
        self._first = first
        self._free = list(range(first + count - 1, first - 1, -1))
        self._slot_version = np.zeros(count, np.int64)
        self._taken = np.zeros(count, np.bool_)

    def take(self) -> tuple[int, int]:
        """A free slot and its new slot_version.

        Raises:
            RuntimeError: all are taken.
        """
        if not self._free:
            raise RuntimeError(f"all {len(self._taken)} slots are taken")
        slot = self._free.pop()
        at = slot - self._first
        self._taken[at] = True
        self._slot_version[at] += 1
        return slot, int(self._slot_version[at])

    def take_many(self, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """`count` free slots and their new slot_versions, int64[count] each.

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
        self._slot_version[at] += 1
        return slots, self._slot_version[at]

    def give_back(self, slot: int, slot_version: int) -> None:
        """Free `slot`.

        Raises:
            RuntimeError: the slot is not taken, or by another slot_version: it was freed twice.
        """
        at = slot - self._first
        if not 0 <= at < len(self._taken) or not self._taken[at] or self._slot_version[at] != slot_version:
            raise RuntimeError(f"slot {slot} (slot_version {slot_version}) was freed twice or never taken")
        self._taken[at] = False
        self._free.append(slot)

    def give_back_many(self, slots: np.ndarray[Any, Any], slot_versions: np.ndarray[Any, Any]) -> None:
        """Free all `slots`, or none if one of them is wrong.

        Raises:
            RuntimeError: as for `give_back`, or a slot is named twice.
        """
        at = slots - self._first
        known = (at >= 0) & (at < len(self._taken))
        fine = known.all() and self._taken[at].all() and np.array_equal(self._slot_version[at], slot_versions)
        if not fine or len(np.unique(at)) != len(at):
            raise RuntimeError(f"one of {len(slots)} slots was freed twice or never taken")
        self._taken[at] = False
        self._free.extend(slots[::-1].tolist())

    def versions(self, slots: Ints) -> Ints:
        """int64[n]: the slot_version of each of `slots`, 0 if it is free. Any thread may ask."""
        at = slots - self._first
        return np.where(self._taken[at], self._slot_version[at], 0)

    @property
    def used(self) -> int:
        """Slots taken now."""
        return len(self._taken) - len(self._free)


class Capacity:
    """A model's room for sessions. Thread-safe."""

    def __init__(self, slots: SlotAllocator | None, max_sessions: int) -> None:
        """`slots` are the pool's, `max_sessions` of them; None for a stateless model."""
        self.max_sessions = max_sessions
        self._slots = slots
        self._live = 0
        # True while the model is being unloaded.
        self.closed = False
        self._lock = threading.Lock()

    def take(self, *, limited: bool = True) -> tuple[int, int]:
        """Room for one session: its slot and the slot's slot_version, 0 and 0 for a stateless model.

        Raises:
            SessionLimit: the model has no room for another session.
        """
        with self._lock:
            if self._live >= self.max_sessions and (limited or self._slots is not None):
                self._check(1)
            taken = self._slots.take() if self._slots is not None else (0, 0)
            self._live += 1
            return taken

    def take_many(self, count: int) -> tuple[Ints, Ints]:
        """Room for `count` sessions, all or none: int64[count] slots and slot_versions.

        Raises:
            SessionLimit: the model has too little room.
        """
        with self._lock:
            self._check(count)
            self._live += count
            if self._slots is None:
                return np.zeros(count, np.int64), np.zeros(count, np.int64)
            return self._slots.take_many(count)

    def check_open(self) -> None:
        """Raise ModelUnloading if the model is being unloaded. Only new sessions ask; live ones may take more room."""
        if self.closed:
            raise ModelUnloading("this model is being unloaded and takes no new sessions")

    def _check(self, count: int) -> None:
        free = self.max_sessions - self._live
        if count > free:
            wanted = (
                f"all {self.max_sessions} sessions of this model are taken"
                if count == 1
                else f"{count} sessions asked for, {max(free, 0)} of {self.max_sessions} are free"
            )
            raise SessionLimit(f"{wanted}; try again later", max_sessions=self.max_sessions)

    def give_back(self, slot: int, slot_version: int) -> None:
        """Free the room of one session, which has ended and has no work in flight."""
        with self._lock:
            self._live -= 1
            if self._slots is not None:
                self._slots.give_back(slot, slot_version)

    def give_back_many(self, slots: Ints, slot_versions: Ints) -> None:
        """Free the room of several sessions, which have ended and have no work in flight."""
        with self._lock:
            self._live -= len(slots)
            if self._slots is not None:
                self._slots.give_back_many(slots, slot_versions)

    def versions(self, slots: Ints) -> Ints:
        """int64[n]: the slot_version of each of `slots` of a stateful model, 0 if it is free."""
        assert self._slots is not None
        return self._slots.versions(slots)

    @property
    def live(self) -> int:
        """Sessions that have room taken."""
        return self._live

    @property
    def slots_used(self) -> int:
        """State slots taken now."""
        return 0 if self._slots is None else self._slots.used
