"""A generation's replies, as plain values. The protocol encodes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class StopReason(StrEnum):
    """Why a generation has ended; the value is the metrics label."""

    STEPS = "steps"
    CLASS = "class"
    REQUEST = "request"
    NON_FINITE = "non_finite"


@dataclass(frozen=True, slots=True)
class RankedSequence:
    """One result of a beam search."""

    classes: Sequence[int]
    log_probability: float
    score: float
    stopped: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply to a `generate` message.

    Attributes:
        tag: the message's.
        step_index: timesteps applied to the session so far.
        steps: timesteps applied since the reply before.
        chosen: the choice after each of these steps, encoded for the client; empty if the output itself is fed back.
        first: the first input, encoded for the client, in the first reply if the server made it.
        seed: of a sample, in the first reply.
        outputs: one tensor an output, of `output_steps` timesteps.
        sequences: of a beam search, the best first.
        stop_reason: why it has ended, in the last reply.
    """

    tag: int
    step_index: int
    steps: int = 0
    chosen: bytes = b""
    first: bytes = b""
    seed: int = 0
    outputs: Sequence[bytes] = ()
    output_steps: int = 0
    sequences: Sequence[RankedSequence] = ()
    stop_reason: StopReason | None = None


class GenerationListener(Protocol):
    """Gets the replies to a `generate` message. The thread that runs the engine calls it."""

    def generated(self, reply: Reply, *, last: bool) -> None:
        """Send one reply."""

    def has_room(self, wake: Callable[[], None]) -> bool:
        """As `Call.has_room`."""
