"""A model's capacity for sessions, shared by several processes: a table in shared memory under a file lock.

The engine process owns the table. Each front end takes an entry for each session that it opens, so the bound on
sessions holds over all front ends without asking the engine process. If a process dies, the kernel releases its lock,
and its entries are found by its number.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from .capacity import Capacity, Ints

_SPARE_ENTRIES = 1024  # for rows of unary calls on stateless models, to which no bound applies
_TOP, _PASSING = range(2)


class SharedCapacity(Capacity):
    """A `Capacity` over shared memory. Entry n of a stateful model is its pool's n-th slot."""

    def __init__(
        self,
        max_sessions: int,
        first_slot: int,
        *,
        stateful: bool,
        process_number: int = 1,
        memory: int | None = None,
    ) -> None:
        """Make the table, or take part in one.

        Args:
            max_sessions: sessions that may be live at once.
            first_slot: the pool's.
            stateful: whether the model has a pool at all.
            process_number: this process's number, from 1 on; the engine is 1.
            memory: the table's memfd; None: make one.
        """
        super().__init__(None, max_sessions)
        self.entries = max_sessions if stateful else max_sessions + _SPARE_ENTRIES
        self._first = first_slot
        self._stateful = stateful
        self._process_number = process_number
        size = 8 * (2 + 3 * self.entries)
        self.memory = os.memfd_create("streamcell-capacity", os.MFD_CLOEXEC) if memory is None else memory
        if memory is None:
            os.ftruncate(self.memory, size)
        # Opens its own file description: flock() locks are per description, and a passed descriptor would share it.
        self._lock_file = os.open(f"/proc/self/fd/{self.memory}", os.O_RDWR | os.O_CLOEXEC)
        table = np.frombuffer(mmap.mmap(self.memory, size), np.int64)
        self._numbers = table[:2]
        self._free, self._slot_version, self._processes = table[2:].reshape(3, self.entries)
        if memory is None:
            self._numbers[_TOP] = self.entries
            self._free[:] = np.arange(self.entries)[::-1]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close this process's view of the table."""
        os.close(self._lock_file)
        os.close(self.memory)

    # Entries, as front ends take them

    def take_entry(self, *, limited: bool = True) -> tuple[int, int]:
        """A entry and its slot_version.

        Raises:
            SessionLimit: the model has no room for another session.
        """
        with self._locked():
            if limited or not self._numbers[_TOP]:
                self._check(1)
            entries = self._take(1)
            return int(entries[0]), int(self._slot_version[entries[0]])

    def _take(self, count: int) -> Ints:
        top = int(self._numbers[_TOP])
        self._numbers[_TOP] = top - count
        entries: Ints = self._free[top - count : top][::-1].copy()
        self._slot_version[entries] += 1
        self._processes[entries] = self._process_number
        return entries

    def give_back_entries(self, entries: Ints, slot_versions: Ints) -> None:
        """Free all `entries`, or none if one of them is wrong.

        Raises:
            RuntimeError: one is not taken, or by another slot_version, or is named twice.
        """
        with self._locked():
            known = (entries >= 0) & (entries < self.entries)
            fine = known.all() and self._processes[entries].all()
            if not (fine and np.array_equal(self._slot_version[entries], slot_versions)) or len(
                np.unique(entries)
            ) != len(entries):
                raise RuntimeError(f"one of {len(entries)} entries was freed twice or never taken")
            self._put(entries)

    def _put(self, entries: Ints) -> None:
        top = int(self._numbers[_TOP])
        self._processes[entries] = 0
        self._free[top : top + len(entries)] = entries[::-1]
        self._numbers[_TOP] = top + len(entries)

    def reclaim(self, process_number: int) -> int:
        """Free all entries of a process that has died, half-taken ones too; returns how many it held."""
        with self._locked():
            held = int(np.count_nonzero(self._processes == process_number))
            self._processes[self._processes == process_number] = 0
            free = np.flatnonzero(self._processes == 0)
            self._free[: len(free)] = free[::-1]
            self._numbers[_TOP] = len(free)
            return held

    # A `Capacity`, as the engine's own sessions take it

    def take(self, *, limited: bool = True) -> tuple[int, int]:
        """Room for one session: its slot and the slot's slot_version, 0 and 0 for a stateless model."""
        if self._stateful:
            entry, slot_version = self.take_entry()
            return entry + self._first, slot_version
        with self._locked():
            if limited:
                self._check(1)
            self._numbers[_PASSING] += 1
            return 0, 0

    def take_many(self, count: int) -> tuple[Ints, Ints]:
        """Room for `count` sessions, all or none: int64[count] slots and slot_versions."""
        with self._locked():
            self._check(count)
            if self._stateful:
                entries = self._take(count)
                return entries + self._first, self._slot_version[entries]
            self._numbers[_PASSING] += count
            return np.zeros(count, np.int64), np.zeros(count, np.int64)

    def _check(self, count: int) -> None:
        self._live = self.live
        super()._check(count)

    def give_back(self, slot: int, slot_version: int) -> None:
        """Free the room of one session, which has ended and has no work in flight."""
        self.give_back_many(np.array([slot]), np.array([slot_version]))

    def give_back_many(self, slots: Ints, slot_versions: Ints) -> None:
        """Free the room of several sessions, which have ended and have no work in flight."""
        if self._stateful:
            self.give_back_entries(slots - self._first, slot_versions)
            return
        with self._locked():
            self._numbers[_PASSING] -= len(slots)

    def versions(self, slots: Ints) -> Ints:
        """int64[n]: the slot_version of each of `slots` of a stateful model, 0 if it is free."""
        at = slots - self._first
        return np.where(self._processes[at] != 0, self._slot_version[at], 0)

    @property
    def live(self) -> int:
        """Sessions that have room taken."""
        return self.entries - int(self._numbers[_TOP]) + int(self._numbers[_PASSING])

    @property
    def slots_used(self) -> int:
        """State slots taken now."""
        return self.live if self._stateful else 0
