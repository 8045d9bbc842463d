"""A ring of fixed-size records in memory that two processes share: one of them writes, the other reads.

The memory is a memfd and has no name, so nothing is left behind however the processes end. What has been written and
what has been read is counted by two eventfds and by nothing in the memory itself: the kernel's counters order the
two sides on every kind of processor, wake whoever waits, and lose no wake-up.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Records: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Ring:
    """A ring's memory and its counters, as file descriptors.

    Attributes:
        capacity: records that it holds.
        record_bytes: that one takes.
        memory: the memfd.
        written: an eventfd, readable while there are records to read.
        freed: an eventfd, readable while there is room that the writer has not taken note of.
    """

    capacity: int
    record_bytes: int
    memory: int
    written: int
    freed: int

    @classmethod
    def make(cls, capacity: int, record_bytes: int) -> Ring:
        """An empty ring."""
        memory = os.memfd_create("streamcell-ring", os.MFD_CLOEXEC)
        os.ftruncate(memory, capacity * record_bytes)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        return cls(capacity, record_bytes, memory, os.eventfd(0, flags), os.eventfd(0, flags))

    @property
    def fds(self) -> tuple[int, int, int]:
        """What the other process needs to have, in the order of the attributes."""
        return self.memory, self.written, self.freed

    def view(self) -> Records:
        """uint8[capacity, record_bytes]: the memory itself."""
        mapped = mmap.mmap(self.memory, self.capacity * self.record_bytes)
        return np.frombuffer(mapped, np.uint8).reshape(self.capacity, self.record_bytes)

    def close(self) -> None:
        """Close the descriptors. Views stay valid."""
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def count(fd: int) -> int:
    """What an eventfd has counted since it was last asked; 0 for nothing."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class Writer:
    """The writing side. The caller sees to it that one thread at a time uses it."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self._records = ring.view()
        # The same memory for writes of one record, which are cheaper without numpy.
        self.bytes = self._records.data.cast("B")
        self._free = ring.capacity
        self._at = 0
        self.untold = 0  # records that are written, and that the reader does not know of

    def room(self, wanted: int) -> int:
        """How many records may be written now; where that is fewer than `wanted`, after a look at what was read."""
        if self._free < wanted:
            self._free += count(self.ring.freed)
        return self._free

    def place(self) -> int:
        """Where in `bytes` the next record goes; for one record, once there is room. Then come `wrote` and `tell`."""
        return self._at * self.ring.record_bytes

    def wrote(self) -> None:
        """The record at `place` is there, to be read once the reader is told."""
        self._advance(1)

    def write(self, records: Records) -> None:
        """Write uint8[n, record_bytes] and tell; there is room for n. The reader sees all of them or none."""
        number = len(records)
        first = min(number, self.ring.capacity - self._at)
        self._records[self._at : self._at + first] = records[:first]
        self._records[: number - first] = records[first:]
        self._advance(number)
        self.tell()

    def _advance(self, number: int) -> None:
        self._at = (self._at + number) % self.ring.capacity
        self._free -= number
        self.untold += number

    def tell(self) -> None:
        """Have the reader know of all that is written."""
        if self.untold:
            os.eventfd_write(self.ring.written, self.untold)
            self.untold = 0


class Reader:
    """The reading side. The caller sees to it that one thread at a time uses it."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self._records = ring.view()
        self._at = 0
        self._owed = 0

    def read(self) -> Records | None:
        """A copy of everything there is to read, uint8[n, record_bytes]; None where that is nothing."""
        number = count(self.ring.written)
        if not number:
            return None
        first = min(number, self.ring.capacity - self._at)
        taken = self._records[self._at : self._at + first]
        taken = taken.copy() if first == number else np.concatenate((taken, self._records[: number - first]))
        self._at = (self._at + number) % self.ring.capacity
        # A quarter of the ring may stay untold: the writer never waits for more than another quarter.
        self._owed += number
        if 4 * self._owed >= self.ring.capacity:
            os.eventfd_write(self.ring.freed, self._owed)
            self._owed = 0
        return taken
