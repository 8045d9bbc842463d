"""Decides which thread runs the next batch: the engine thread, or the thread that reads messages.

Handing a batch to the engine thread costs wake-ups, and both threads want the GIL while the replies go out: a time a
batch and a time a message, which `service/machine.py` measures. A message that is read by an operation of its own, not
by the one that sends a reply, counts twice: both threads take the GIL twice as often for it. A run that takes no more
CPU time than that ends sooner, and costs less CPU, on the thread that read the messages. A longer run leaves the
reading thread free if the engine thread does it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeAlias

from mypy_extensions import mypyc_attr

from streamcell.service.machine import USUAL, Machine

from .batch import Batch

# Calls a function on the thread that reads messages, after those that have arrived; False if it cannot.
AfterArrivals: TypeAlias = Callable[[Callable[[], None]], bool]

_MOST_S = 1e-3  # nothing is read while a batch runs inline: no run may be expected to take longer
_WEIGHT = 0.1  # of the newest run
_SURELY = 0.8  # inline runs begin only once a run takes less than this part of what it may take


@mypyc_attr(allow_interpreted_subclasses=True)
class InlinePolicy:
    """Decides whether a model's runs are short enough to execute inline. `short` says how to do the next one."""

    __slots__ = ("_batch_s", "_ratio", "_row_s", "short")

    def __init__(self, machine: Machine = USUAL) -> None:
        self._batch_s, self._row_s = machine.batch_s, machine.row_s
        self._ratio = 2.0
        self.short = False

    def stalled(self) -> None:
        """Note that a run hit its time limit: no run is inline until many have been short."""
        self._ratio, self.short = 4.0, False

    def ran(self, rows: int, cpu_s: float, read_apart: int = 0) -> None:
        """Note that a run of `rows` rows took `cpu_s` of its thread's CPU time.

        `read_apart`: how many of them are of sessions whose messages are read by operations of their own.
        """
        ratio = cpu_s / min(self._batch_s + self._row_s * (rows + read_apart), _MOST_S)
        # A stall says nothing about the next run, so no run counts as more than four times too long.
        self._ratio += _WEIGHT * (min(ratio, 4.0) - self._ratio)
        self.short = self._ratio < (1.0 if self.short else _SURELY)


class Wakeup(Protocol):
    """What the engine thread sleeps on: a lock, or something that other processes can release, too."""

    def acquire(self) -> bool:
        """Sleep until `release` is called, or return at once if it has been called since."""

    def release(self) -> None:
        """Wake the sleeping thread."""


class InlineRuns:
    """Whether the engine thread is awake, sleeps, or sleeps while a run is reserved in its place.

    Only one of the two threads runs the engine at a time. The batcher's lock guards all but `ran` and `sleep`:

        awake ──nothing is ready──▶ asleep ──a message comes, and runs are short──▶ reserved
          ▲                           │ ▲                                             │
          ├──────a message comes──────┘ └────────the run is over, nothing is left─────┤
          └───────────────────the run is over, the engine thread takes the rest─────┘

    Attributes:
        asleep: the engine thread sleeps, and no run is reserved.
        policy: decides whether runs are short.
        run: runs a batch that was reserved.
        wakeup: what the engine thread sleeps on, if more than the batcher may wake it; then no run is inline.
    """

    __slots__ = ("_served", "_wakeup", "asleep", "policy", "run", "wakeup")

    def __init__(self, wakeup: Wakeup | None, machine: Machine = USUAL) -> None:
        self.wakeup = wakeup
        # If it is a lock, it is held while the engine thread has no reason to wake.
        self._wakeup: Wakeup = wakeup or threading.Lock()
        if wakeup is None:
            self._wakeup.acquire()
        self.policy = InlinePolicy(machine)
        self.asleep = False
        self._served = False
        self.run: Callable[[Batch], None] = _run_nothing

    def serve(self, run: Callable[[Batch], None] | None) -> None:
        """Use `run` for inline runs from now on; None: no run is inline."""
        # Other processes could wake the engine thread during an inline run; then two threads would run the engine.
        self._served = run is not None and self.wakeup is None
        self.run = run or _run_nothing

    def sleep(self) -> None:
        """Sleep until woken; for the engine thread."""
        self._wakeup.acquire()

    def wake_engine(self) -> None:
        """Wake the engine thread, which is asleep."""
        self.asleep = False
        self._wakeup.release()

    def ran(self, rows: int, cpu_s: float, read_apart: int) -> None:
        """Note a run, whichever thread did it: see `InlinePolicy.ran`."""
        self.policy.ran(rows, cpu_s, read_apart)

    def reserve(self) -> bool:
        """Reserve an inline run if runs are short and the engine thread sleeps; True if the caller must arrange it."""
        if not (self.asleep and self._served and self.policy.short):
            return False
        self.asleep = False
        return True

    def finish(self, *, more: bool) -> bool:
        """End the reserved run. True if another one is reserved, because `more` work can run inline."""
        self.asleep = True
        return more and self.reserve()


def _run_nothing(batch: Batch) -> None:
    """The runner has stopped, and its sessions have ended."""
