"""How many sessions of a model are live, of how many there may be, and the slots they hold."""

from __future__ import annotations

import threading
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from streamcell.service.errors import ModelUnloading, SessionLimit

from .slots import SlotAllocator

Ints: TypeAlias = npt.NDArray[np.int64]


class Capacity:
    """A model's room for sessions. Thread-safe."""

    def __init__(self, slots: SlotAllocator | None, max_sessions: int) -> None:
        """`slots` are the pool's, `max_sessions` of them; None for a stateless model."""
        self.max_sessions = max_sessions
        self._slots = slots
        self._live = 0
        # Set where the model is being unloaded.
        self.closed = False
        self._lock = threading.Lock()

    def take(self, *, limited: bool = True) -> tuple[int, int]:
        """Room for one session: its slot and the slot's generation, 0 and 0 for a stateless model.

        Raises:
            SessionLimit: as many sessions are live as there may be.
        """
        with self._lock:
            if limited or self._slots is not None:
                self._check(1)
            taken = self._slots.take() if self._slots is not None else (0, 0)
            self._live += 1
            return taken

    def take_many(self, count: int) -> tuple[Ints, Ints]:
        """Room for `count` sessions, all or none: int64[count] slots and generations.

        Raises:
            SessionLimit: so many more may not be live.
        """
        with self._lock:
            self._check(count)
            self._live += count
            if self._slots is None:
                return np.zeros(count, np.int64), np.zeros(count, np.int64)
            return self._slots.take_many(count)

    def check_open(self) -> None:
        """Raise ModelUnloading where the model is being unloaded: for new sessions; live ones may take more room."""
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

    def give_back(self, slot: int, generation: int) -> None:
        """A session has ended and its work has landed."""
        with self._lock:
            self._live -= 1
            if self._slots is not None:
                self._slots.give_back(slot, generation)

    def give_back_many(self, slots: Ints, generations: Ints) -> None:
        """So many sessions have ended and their work has landed."""
        with self._lock:
            self._live -= len(slots)
            if self._slots is not None:
                self._slots.give_back_many(slots, generations)

    @property
    def live(self) -> int:
        """Sessions that have room taken."""
        return self._live

    @property
    def slots_used(self) -> int:
        """State slots taken now."""
        return 0 if self._slots is None else self._slots.used
