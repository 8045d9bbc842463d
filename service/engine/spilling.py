"""More sessions than rows: idle sessions' states leave the pool for the host's memory, and come back when they step.

All parts of the server number sessions by *slot*, as if each had its own row in the pool. Before a run,
`Spilling.place` replaces slots by the sessions' rows, and brings spilled sessions back. It takes rows for them from
sessions that have ended, then from those that ran longest ago.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from streamcell.service.errors import EngineFailed

from .card_lock import alone
from .cuda_copies import Copies
from .device import Device

Array = np.ndarray[Any, Any]
Ints: TypeAlias = npt.NDArray[np.int64]
_AWAY = -1
# Rows that leave together, and rows that one block of pinned memory has room for.
_AT_ONCE = 64


class Mover(Protocol):
    """Copies rows between the pool and the host's memory, where each slot has its own place, from 0 on."""

    def out(self, rows: Ints, places: Ints) -> None:
        """Copy the pool's `rows` to the host's `places`."""

    def back(self, places: Ints, rows: Ints) -> None:
        """Copy the host's `places` to the pool's `rows`."""

    def read(self, place: int) -> tuple[Array, ...]:
        """A copy of what is at the host's `place`: an array for each state."""

    def close(self) -> None:
        """Give back what it holds of the device."""


class Spilling:
    """Which sessions are in the pool, and in which row. For the thread that runs the engine, but for `spilled`.

    Attributes:
        versions: for int64[n] slots of sessions the number of each one's owner, 0 if it has none.
        told: is told how many sessions have left the pool and how many came back to it, and in how many seconds.
    """

    def __init__(
        self, mover: Mover, *, first: int, rows: int, slots: int, numbers: int | None = None
    ) -> None:
        """Begin with an empty pool.

        Args:
            mover: copies the states.
            first: the first slot, and the first row that sessions may have.
            rows: how many rows they may have.
            slots: how many sessions there may be.
            numbers: how many numbers these have: twice as many if each has two rows, the second behind all first ones.
        """
        numbers = numbers or slots
        self._slots = slots
        self.versions: Callable[[Ints], Ints] = lambda slots: np.ones(len(slots), np.int64)
        self.told: Callable[[int, int, float], None] = lambda spilled, returned, took_s: None
        self._mover = mover
        self._first = first
        # The initial state and the rows for padding are where their numbers say.
        self._row_of = np.full(first + numbers, _AWAY, np.int64)
        self._row_of[:first] = np.arange(first)
        self._slot_of = np.zeros(first + rows, np.int64)  # 0: the row is free
        self._free = list(range(first + rows - 1, first - 1, -1))
        self._run = 0
        self._last_run = np.zeros(first + rows, np.int64)  # in which a row was used last
        self._owner = np.zeros(numbers, np.int64)  # the owner whose state is in the host's memory; 0: none
        self._at_once = max(1, min(_AT_ONCE, rows // 8))

    def place(self, read: Ints, write: Ints) -> None:
        """Replace the slots that a run reads and writes by rows, in place. Brings spilled sessions back for it.

        Args:
            read: int64[n], slots whose states it reads; a row below the first slot stays as it is.
            write: int64[n], slots whose states it writes.

        Raises:
            EngineFailed: a state could not be moved, or one run cannot have that many rows. Nothing is lost by that.
        """
        self._run += 1
        sources, targets = self._row_of[read], self._row_of[write]
        if np.bitwise_or.reduce(sources | targets) < 0:  # one of them is away
            # Those of it that are here stay; the initial state's row is no session's.
            self._last_run[np.maximum(sources, 0)] = self._last_run[np.maximum(targets, 0)] = self._run
            self._bring(read[sources < 0].tolist(), write[targets < 0].tolist())
            sources, targets = self._row_of[read], self._row_of[write]
        self._last_run[sources] = self._last_run[targets] = self._run
        read[:], write[:] = sources, targets

    def read(self, slot: int) -> tuple[Array, ...] | int:
        """A copy of the state of `slot` if it is in the host's memory, else the row where it is."""
        row = int(self._row_of[slot])
        return self._mover.read(slot - self._first) if row == _AWAY else row

    def close(self) -> None:
        """Give back what moves rows."""
        self._mover.close()

    @property
    def spilled(self) -> int:
        """How many live sessions are in the host's memory."""
        there = (self._row_of[self._first :] != _AWAY).reshape(-1, self._slots).any(axis=0)
        owned = self._owner != 0
        owned &= self._owner == self._versions(np.arange(len(self._owner)) + self._first)
        return int(np.count_nonzero(owned.reshape(-1, self._slots).any(axis=0) & ~there))

    def recovered(self) -> None:
        """The states of an earlier process's sessions are in the host's memory: they come back when they step."""
        self._owner[:] = self._versions(np.arange(len(self._owner)) + self._first)

    def slots_of(self, rows: Ints) -> Ints:
        """int64[n]: whose rows they are; rows that no session has are their own."""
        return np.where(rows < self._first, rows, self._slot_of[rows])

    def _versions(self, slots: Ints) -> Ints:
        """The owners' numbers, also for second rows."""
        return self.versions(self._first + (slots - self._first) % self._slots)

    def _bring(self, read: list[int], write: list[int]) -> None:
        """Give rows to slots that have none, and bring back the states of those that are read."""
        began_s = time.perf_counter()
        # What is only written has no state yet, or one that nobody reads any more. Each slot once.
        wanted = dict.fromkeys(read)
        count = len(wanted)
        wanted.update(dict.fromkeys(write))
        slots = np.array(list(wanted), np.int64)
        back = slots[:count] - self._first
        if not self._owner[back].all():
            raise EngineFailed("the server has lost the session's state; open another session")
        short = len(slots) - len(self._free)
        spilled = self._make_room(short) if short > 0 else 0
        rows = np.array(self._free[: -len(slots) - 1 : -1], np.int64)
        if count:
            try:
                self._mover.back(back, rows[:count])
            except Exception as error:  # CUDA's, or there is no memory
                self.told(spilled, 0, 0.0)
                raise _failed() from error
        del self._free[-len(slots) :]
        self._row_of[slots], self._slot_of[rows] = rows, slots
        self._owner[slots - self._first] = 0
        self.told(spilled, count, time.perf_counter() - began_s)

    def _make_room(self, short: int) -> int:
        """Free at least `short` rows; returns how many sessions left the pool for it."""
        rows = np.flatnonzero(self._slot_of)
        rows = rows[self._last_run[rows] != self._run]
        if len(rows) < short:
            raise EngineFailed("the run needs more rows of the pool than there are; raise --slots")
        ended = self._versions(self._slot_of[rows]) == 0
        self._empty(rows[ended])
        rows, short = rows[~ended], short - int(np.count_nonzero(ended))
        if short <= 0:
            return 0
        count = min(len(rows), max(short, self._at_once))
        oldest = self._oldest(rows, count)
        slots = self._slot_of[oldest]
        owners = self._versions(slots)
        try:
            self._mover.out(oldest, slots - self._first)
        except Exception as error:  # CUDA's, or there is no memory
            raise _failed() from error
        self._owner[slots - self._first] = owners
        self._empty(oldest)
        return count

    def _oldest(self, rows: Ints, count: int) -> Ints:
        """Those `count` of `rows` that were used least recently."""
        oldest: Ints = rows[np.argpartition(self._last_run[rows], count - 1)[:count]]
        return oldest

    def _empty(self, rows: Ints) -> None:
        self._row_of[self._slot_of[rows]] = _AWAY
        self._slot_of[rows] = 0
        self._free.extend(rows.tolist())


def _failed() -> EngineFailed:
    return EngineFailed("the session's state could not be brought back to the device; open another session")


def mover(
    device: Device,
    pools: Sequence[Array],
    values: Sequence[ort.OrtValue],
    slots: int,
    current: Sequence[Array] = (),
) -> Mover:
    """Return the mover of rows of `values`, which are `pools` on the device.

    Args:
        device: where they are.
        pools: arrays of that memory, if it is the host's.
        values: the same for ONNX Runtime.
        slots: how many rows there are with all that are away.
        current: the host's own up-to-date copies of all of them, if there are any; else memory for copies is made.
    """
    # Pages that nobody has written take no memory.
    kept = current or [np.zeros((slots, *array.shape[1:]), array.dtype) for array in pools]
    if device.on_host:
        return _HostRows(pools, kept)
    return _CopiedRows(device, values, kept, current=bool(current))


class _HostRows:
    """The pool is in the host's memory, too."""

    def __init__(self, pools: Sequence[Array], kept: Sequence[Array]) -> None:
        self._pools, self._kept = pools, kept

    def out(self, rows: Ints, places: Ints) -> None:
        """See `Mover`."""
        for pool, kept in zip(self._pools, self._kept, strict=True):
            kept[places] = pool[rows]

    def back(self, places: Ints, rows: Ints) -> None:
        """See `Mover`."""
        for pool, kept in zip(self._pools, self._kept, strict=True):
            pool[rows] = kept[places]

    def read(self, place: int) -> tuple[Array, ...]:
        """See `Mover`."""
        return tuple(kept[place].copy() for kept in self._kept)

    def close(self) -> None:
        """See `Mover`."""


class _CopiedRows:
    """The pool is on a card: rows are copied one by one through a block of pinned memory, and waited for together."""

    def __init__(
        self, device: Device, values: Sequence[ort.OrtValue], kept: Sequence[Array], *, current: bool
    ) -> None:
        self._device = device
        self._current = current
        self._values = values  # they own the memory
        self._kept = kept
        # uint8[slots, bytes] each.
        self._bytes = [each.reshape(len(each), -1).view(np.uint8) for each in kept]
        self._copies: Copies | None = None
        self._block: Array

    def _open(self) -> Copies:
        """The copies, made when the first row leaves: until then an engine may be built twice."""
        if self._copies is None:
            with alone(self._device):
                copies = self._device.copies()
                self._block = copies.buffer(_AT_ONCE * sum(each.shape[1] for each in self._bytes))
            self._copies = copies
        return self._copies

    def _blocks(self, count: int) -> list[tuple[int, Array, int]]:
        """For each state, where in device memory its rows begin, uint8[count, bytes] in the block, and its address."""
        blocks, start = [], 0
        for value, kept in zip(self._values, self._bytes, strict=True):
            size = kept.shape[1]
            block = self._block[start : start + count * size].reshape(count, size)
            blocks.append((value.data_ptr(), block, block.ctypes.data))
            start += count * size
        return blocks

    def out(self, rows: Ints, places: Ints) -> None:
        """See `Mover`."""
        if self._current:
            return
        copies = self._open()
        for at in range(0, len(rows), _AT_ONCE):
            some = rows[at : at + _AT_ONCE].tolist()
            blocks = self._blocks(len(some))
            for base, block, address in blocks:
                size = block.shape[1]
                for place, row in enumerate(some):
                    copies.queue_out(address + place * size, base + row * size, size)
            copies.wait()
            for (_, block, _), kept in zip(blocks, self._bytes, strict=True):
                kept[places[at : at + _AT_ONCE]] = block

    def back(self, places: Ints, rows: Ints) -> None:
        """See `Mover`."""
        copies = self._open()
        for at in range(0, len(rows), _AT_ONCE):
            some = rows[at : at + _AT_ONCE].tolist()
            for (base, block, address), kept in zip(self._blocks(len(some)), self._bytes, strict=True):
                block[:] = kept[places[at : at + _AT_ONCE]]
                size = block.shape[1]
                for place, row in enumerate(some):
                    copies.copy_in(base + row * size, address + place * size, size)
            copies.wait()  # the block is used again, and the run is on another stream

    def read(self, place: int) -> tuple[Array, ...]:
        """See `Mover`."""
        return tuple(kept[place].copy() for kept in self._kept)

    def close(self) -> None:
        """Give the pinned memory and the stream back."""
        copies, self._copies = self._copies, None
        if copies is not None:
            del self._block
            copies.close()
