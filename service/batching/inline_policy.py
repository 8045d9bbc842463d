"""Whether a model's runs are so short that the thread which reads the messages had better do them itself.

To hand a batch to the engine's thread costs wake-ups, and both threads want the GIL while the replies go out: some
5 µs a message, 60 µs a batch. A run that takes no longer than that is done sooner and for less CPU where the
messages were read; one that takes longer leaves the reading thread free meanwhile.
"""

from __future__ import annotations

_BATCH_S, _ROW_S = 60e-6, 5e-6
_MOST_S = 1e-3  # nothing is read meanwhile: no run may be expected to take longer
_WEIGHT = 0.1  # of the newest run
_SURELY = 0.8  # of what a run may take: to begin with short runs, they must be clearly short


class Shortness:
    """Follows what runs take, beside what they may take. `short` says which way the next is to go."""

    __slots__ = ("_ratio", "short")

    def __init__(self) -> None:
        self._ratio = 2.0
        self.short = False

    def stalled(self) -> None:
        """A run had to be ended: no other is done here until many have been short."""
        self._ratio, self.short = 4.0, False

    def ran(self, rows: int, took_s: float) -> None:
        """A run of `rows` sessions took `took_s`."""
        ratio = took_s / min(_BATCH_S + _ROW_S * rows, _MOST_S)
        # A stall says nothing about the next run: no run counts as more than four times too long.
        self._ratio += _WEIGHT * (min(ratio, 4.0) - self._ratio)
        self.short = self._ratio < (1.0 if self.short else _SURELY)
