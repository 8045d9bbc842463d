"""A front end's session, as the engine's process knows it."""

from __future__ import annotations

import time

import numpy as np

from streamcell.service.errors import ServiceError
from streamcell.service.sessions.capacity import Capacity
from streamcell.service.sessions.session import Session, Work
from streamcell.service.sessions.shared_capacity import SharedCapacity

from .ring_batch import SeatArrays


class RingSession(Session):
    """One live sequence of a front end. Per-step state lives in `RingSessions`' arrays."""

    __slots__ = ("_arrays", "seat")

    def __init__(
        self, session_id: str, owner: RingOwner, arrays: SeatArrays, seat: int, slot_version: int, peer: str
    ) -> None:
        self._arrays = arrays
        self.seat = seat
        super().__init__(session_id, owner, seat, slot_version, time.monotonic(), peer)

    def free(self, capacity: Capacity) -> None:
        """Give back its seat."""
        assert isinstance(capacity, SharedCapacity)
        capacity.give_back_seats(np.array([self.seat]), np.array([self.slot_version]))

    @property
    def queued(self) -> int:
        """Messages that have not been answered."""
        return int(self._arrays.queued[self.seat])

    @property
    def step_index(self) -> int:
        """Timesteps applied."""
        return int(self._arrays.applied[self.seat])

    @step_index.setter
    def step_index(self, value: int) -> None:
        self._arrays.applied[self.seat] = value

    @property
    def fresh(self) -> bool:
        """Whether no step was applied."""
        return bool(self._arrays.fresh[self.seat])

    @fresh.setter
    def fresh(self, value: bool) -> None:
        self._arrays.fresh[self.seat] = value

    @property
    def last_used_s(self) -> float:
        """When its last message came."""
        return float(self._arrays.used_s[self.seat])

    @last_used_s.setter
    def last_used_s(self, value: float) -> None:
        self._arrays.used_s[self.seat] = value


class RingOwner:
    """What a front end's session answers to here: its end travels back in order with its replies."""

    def __init__(self, arrays: SeatArrays, seat: int, slot_version: int) -> None:
        self._arrays = arrays
        self._seat = seat
        self._slot_version = slot_version

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Its replies are records."""

    def resume(self) -> None:
        """Its front end does that."""

    def fail(self, error: ServiceError) -> None:
        """No step of it runs from now on; its front end is told, and ends it."""
        self._arrays.fail(self._seat, self._slot_version, error)
