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

    def free(self, capacity: Capacity) -> None:
        """Free its entry."""
        assert isinstance(capacity, SharedCapacity)
        capacity.give_back_entries(np.array([self.entry]), np.array([self.slot_version]))

    @property
    def queued(self) -> int:
        """The number of unanswered messages."""
        return int(self._arrays.queued[self.entry])

    @property
    def step_index(self) -> int:
        """The number of timesteps applied."""
        return int(self._arrays.applied[self.entry])

    @step_index.setter
    def step_index(self, value: int) -> None:
        self._arrays.applied[self.entry] = value

    @property
    def fresh(self) -> bool:
        """True if no step was applied yet."""
        return bool(self._arrays.fresh[self.entry])

    @fresh.setter
    def fresh(self, value: bool) -> None:
        self._arrays.fresh[self.entry] = value

    @property
    def last_used_s(self) -> float:
        """When its last message arrived."""
        return float(self._arrays.used_s[self.entry])

    @last_used_s.setter
    def last_used_s(self, value: float) -> None:
        self._arrays.used_s[self.entry] = value


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
