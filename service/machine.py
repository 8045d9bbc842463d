"""What this machine takes for a hand-over between two threads and for the interpreter's work, measured once at start.

Which thread runs a batch, and how long the serving thread polls, depend on these two. The bounds were found by
measuring whole servers on one machine; on another, they are as much longer or shorter as its hand-overs and its
interpreter are.
"""

from __future__ import annotations

import threading
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

# On the machine where the bounds were found, two virtual cores.
_HAND_OVER_S, _WORK_S = 14e-6, 0.091e-6
# There: what a batch and a row may take inline (see `batching/inline.py`), and how long polling pays (see
# `transport/completion_queue.py`).
_BATCH_S, _ROW_S, _SPIN_S = 100e-6, 10e-6, 100e-6
_LEAST, _MOST = (
    1 / 3,
    4.0,
)  # times these: a measurement that is further off says more of the moment than of the machine

_HAND_OVERS, _LEAST_HAND_OVERS = 64, 8
_BUDGET_S = 0.02  # for hand-overs: a busy machine may take a time slice for each
_WORKS, _REPEATS = 200, 9
_WORK = "lock.acquire(); queue.append(work); lock.release(); queue.popleft()"
_WORK_SETUP = (
    "import threading, collections; lock = threading.Lock(); queue = collections.deque(); work = object()"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The bounds that follow from what was measured, in seconds.

    Attributes:
        hand_over_s: to another thread that sleeps, and back.
        work_s: a few usual operations of the interpreter.
        batch_s, row_s: the CPU time that a batch, and each of its rows, may take for the run to be done inline.
        spin_s: how long the serving thread polls before it blocks.
    """

    hand_over_s: float
    work_s: float
    batch_s: float
    row_s: float
    spin_s: float

    @classmethod
    def of(cls, hand_over_s: float, work_s: float) -> Machine:
        """The bounds for a machine that takes so long."""
        hand_over, work = (
            min(max(took_s / usual_s, _LEAST), _MOST)
            for took_s, usual_s in ((hand_over_s, _HAND_OVER_S), (work_s, _WORK_S))
        )
        # Two threads that share a busy core while they are measured wake each other sooner, but handing batches over
        # is no cheaper then. So the bound of a batch is not shorter than the interpreter's speed says.
        batch = max(hand_over, work)
        return cls(hand_over_s, work_s, batch * _BATCH_S, work * _ROW_S, hand_over * _SPIN_S)

    def as_us(self) -> dict[str, float]:
        """All of it in microseconds, for the log."""
        return {
            "hand_over_us": round(self.hand_over_s * 1e6, 1),
            "work_us": round(self.work_s * 1e6, 3),
            "inline_batch_us": round(self.batch_s * 1e6, 1),
            "inline_row_us": round(self.row_s * 1e6, 2),
            "spin_us": round(self.spin_s * 1e6),
        }


USUAL = Machine.of(_HAND_OVER_S, _WORK_S)


@cache
def measured() -> Machine:
    """This machine, measured at the first call: a few milliseconds, at most 30 on a busy one."""
    return Machine.of(median(hand_overs()), median(works()))


def hand_overs(now_s: Callable[[], float] = time.perf_counter) -> Sequence[float]:
    """Seconds of several hand-overs to another thread and back, each of which wakes the one that sleeps."""
    there, back = threading.Lock(), threading.Lock()
    there.acquire()
    back.acquire()
    over = False

    def answer() -> None:
        while True:
            there.acquire()
            if over:
                return
            back.release()

    thread = threading.Thread(target=answer, name="measuring", daemon=True)
    thread.start()
    found: list[float] = []
    until_s = now_s() + _BUDGET_S
    while len(found) < _HAND_OVERS:
        began_s = now_s()
        there.release()
        back.acquire()
        ended_s = now_s()
        found.append(ended_s - began_s)
        if ended_s > until_s and len(found) >= _LEAST_HAND_OVERS:
            break
    over = True
    there.release()
    thread.join()
    return found


def works() -> Sequence[float]:
    """Seconds of the interpreter's usual operations, measured several times."""
    # `timeit` compiles the text: the interpreter runs it, even if this module is compiled.
    return [took_s / _WORKS for took_s in timeit.repeat(_WORK, _WORK_SETUP, number=_WORKS, repeat=_REPEATS)]
