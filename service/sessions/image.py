"""The states of sessions without their slots: the content of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from .capacity import Ints

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Image:
    """One session, or those of a stream of frames.

    Attributes:
        step_indices: int64[sessions], timesteps applied.
        values: uint8[stepped, bytes] a state: of the sessions that have applied a timestep, in order.
        given: uint8[sessions, bytes] an open input: what the sessions were given.
        last_output: of one session: the output that generations feed back.
        handles: int64[sessions], of a stream of frames.
    """

    step_indices: Ints
    values: Sequence[Bytes]
    given: Sequence[Bytes]
    last_output: bytes = b""
    handles: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def states(self, place: int) -> list[bytes]:
        """A value a state, of the session at `place` among those that have applied a timestep."""
        return [value[place].tobytes() for value in self.values]

    def opening(self, at: int) -> tuple[bytes, ...]:
        """What the session at that place was given."""
        return tuple(value[at].tobytes() for value in self.given)
