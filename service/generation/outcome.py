"""What a client was told of a generation that was lost: its choices are made again, so nothing contradicts them."""

from __future__ import annotations

from dataclasses import dataclass

from .reply import StopReason


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was told.

    Attributes:
        steps: timesteps.
        chosen: their choices one behind the other, each as in `Reply.chosen`; empty if outputs themselves are fed back.
        first: the first input, if the server made it.
        reason: why it has ended; None: it has not.
        data: of this `Outcome`, as a request carries it.
    """

    steps: int
    chosen: bytes
    first: bytes
    reason: StopReason | None
    data: bytes

    def choice(self, step: int) -> bytes:
        """What was chosen after so many timesteps, or as first input; empty if that is not known."""
        if not step:
            return self.first
        size = len(self.chosen) // self.steps
        return self.chosen[(step - 1) * size : step * size]
