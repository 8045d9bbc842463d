"""A ring of fixed-size records in memory that two processes share: one writes, the other reads.

The memory is a memfd and has no name, so nothing is left behind however the processes end. Two eventfds count the
records written and read; nothing in the memory does. The kernel's counters order the two sides on every kind of
processor, wake the waiting side, and lose no wake-up.
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
        record_bytes: bytes of one record.
        memory: the memfd.
        written: an eventfd, readable while there are records to read.
        freed: an eventfd, readable while records have been freed that the writer has not counted yet.
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
        """The descriptors for the other process, in the order of the attributes."""
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
    """Read and reset an eventfd's counter; 0 if it counted nothing."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class Writer:
    """The writing side. One thread at a time may use it."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self._records = ring.view()
        # The same memory, for writes of one record, which are cheaper without numpy.
        self.bytes = self._records.data.cast("B")
        self._free = ring.capacity
        self._at = 0
        self.unpublished = 0  # records that are written but not yet visible to the reader

    def room(self, wanted: int) -> int:
        """The number of records that may be written now. Counts what was read only if fewer than `wanted` fit."""
        if self._free < wanted:
            self._free += count(self.ring.freed)
        return self._free

    def place(self) -> int:
        """Where in `bytes` the next record goes. The caller has checked `room` and calls `wrote`, then `publish`."""
        return self._at * self.ring.record_bytes

    def wrote(self) -> None:
        """Note that the record at `place` is written; `publish` makes it visible."""
        self._advance(1)

    def write(self, records: Records) -> None:
        """Write and publish uint8[n, record_bytes]; there must be room. The reader sees all records or none."""
        number = len(records)
        first = min(number, self.ring.capacity - self._at)
        self._records[self._at : self._at + first] = records[:first]
        self._records[: number - first] = records[first:]
        self._advance(number)
        self.publish()

    def _advance(self, number: int) -> None:
        self._at = (self._at + number) % self.ring.capacity
        self._free -= number
        self.unpublished += number

    def publish(self) -> None:
        """Make all written records visible to the reader."""
        if self.unpublished:
            os.eventfd_write(self.ring.written, self.unpublished)
            self.unpublished = 0


class Reader:
    """The reading side. One thread at a time may use it."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self._records = ring.view()
        self._at = 0
        self._owed = 0

    def read(self) -> Records | None:
        """A copy of all published records, uint8[n, record_bytes]; None if there are none."""
        number = count(self.ring.written)
        if not number:
            return None
        first = min(number, self.ring.capacity - self._at)
        taken = self._records[self._at : self._at + first]
        taken = taken.copy() if first == number else np.concatenate((taken, self._records[: number - first]))
        self._at = (self._at + number) % self.ring.capacity
        # Up to a quarter of the ring may stay uncounted: the writer never waits for more than another quarter.
        self._owed += number
        if 4 * self._owed >= self.ring.capacity:
            os.eventfd_write(self.ring.freed, self._owed)
            self._owed = 0
        return taken
