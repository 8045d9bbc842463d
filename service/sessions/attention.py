"""Measures how long a session has been idle, without the times at which the server itself did not run.

A server that was stopped (SIGSTOP, a debugger, a suspended machine) or starved of CPU has not read what its clients
sent it. So housekeeping records the gaps in which it did not run, and no session's idle time includes them. Stamps
of sessions stay times of the monotonic clock: nothing is added to the path of a message.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_LATE = 2.0  # times the interval: a later pass means that the server did not run in between
_GAPS = 256  # kept separately; beyond that the oldest are joined


class Attention:
    """Records when housekeeping ran. Only the housekeeping thread calls it."""

    def __init__(self, interval_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        """`interval_s`: how long housekeeping sleeps between two passes."""
        self._interval_s = interval_s
        self._now_s = now_s
        self._passed_s = now_s()
        self._gaps: deque[tuple[float, float]] = deque()  # (when it began, how long it was), oldest first

    def passes(self) -> bool:
        """Record a pass; False if it is late, so messages sent since the last pass may be unread."""
        before_s, self._passed_s = self._passed_s, self._now_s()
        missed_s = self._passed_s - before_s - self._interval_s
        if missed_s <= (_LATE - 1) * self._interval_s:
            return True
        self._gaps.append((before_s + self._interval_s, missed_s))
        if len(self._gaps) > _GAPS:
            (_, first_s), (began_s, second_s) = self._gaps.popleft(), self._gaps.popleft()
            # Joined at the later gap's place: sessions get more time, never less.
            self._gaps.appendleft((began_s, first_s + second_s))
        return False

    def attended(self) -> None:
        """Count the time since the pass as time in which the server ran, even if the pass was long."""
        self._passed_s = self._now_s()

    def before_s(self, idle_s: float) -> float:
        """A session has been idle for `idle_s` at this pass if it was last used before the returned time."""
        at_s = self._passed_s - idle_s
        for began_s, missed_s in reversed(self._gaps):
            if began_s + missed_s <= at_s:
                break
            at_s -= missed_s
        return at_s
