"""A front end's session in the engine process."""

from __future__ import annotations

import time

import numpy as np

from streamcell.service.errors import ServiceError
from streamcell.service.sessions.capacity import Capacity
from streamcell.service.sessions.session import Session, Work
from streamcell.service.sessions.shared_capacity import SharedCapacity

from .ring_batch import SessionArrays


class RingSession(Session):
    """One live sequence of a front end. Per-step state lives in `RingSessions`' arrays."""

    __slots__ = ("_arrays", "entry")

    def __init__(
        self,
        session_id: str,
        listener: RingListener,
        arrays: SessionArrays,
        entry: int,
        slot_version: int,
        peer: str,
    ) -> None:
        self._arrays = arrays
        self.entry = entry
        super().__init__(session_id, listener, entry, slot_version, time.monotonic(), peer)
        arrays.applied[entry], arrays.fresh[entry], arrays.used_s[entry] = 0, True, self.opened_s

    def free(self, capacity: Capacity) -> None:
        """Free its entry."""
        assert isinstance(capacity, SharedCapacity)
        capacity.give_back_entries(np.array([self.entry]), np.array([self.slot_version]))

    @property
    def queued(self) -> int:
        """The number of unanswered messages."""
        return int(self._arrays.queued[self.entry])

    def figures(self) -> tuple[int, bool, float]:
        """See `Session.figures`."""
        arrays, entry = self._arrays, self.entry
        return int(arrays.applied[entry]), bool(arrays.fresh[entry]), float(arrays.used_s[entry])

    def touch(self, now_s: float) -> None:
        """Note that it was used."""
        self._arrays.used_s[self.entry] = now_s

    @property
    def fresh_count(self) -> int:
        """1 if no step was applied yet, else 0."""
        return int(self._arrays.fresh[self.entry])


class RingListener:
    """The listener of a front end's session: sends its end to the front end, in order with its replies."""

    def __init__(self, arrays: SessionArrays, entry: int, slot_version: int) -> None:
        self._arrays = arrays
        self._entry = entry
        self._slot_version = slot_version

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Never called: replies are records."""

    def resume(self) -> None:
        """Never called: the front end resumes reading by itself."""

    def fail(self, error: ServiceError) -> None:
        """Run no more steps of it, and tell its front end, which ends it."""
        self._arrays.fail(self._entry, self._slot_version, error)
