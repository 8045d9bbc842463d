"""How long a session has been idle while the server was paying attention.

A server that was stopped (SIGSTOP, a debugger, a suspended machine) or starved of CPU has not read what its clients
sent it. So housekeeping notes the times in which it did not come round, and they count as nobody's idle time. Stamps
of sessions stay times of the monotonic clock: nothing is added to the path of a message.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_LATE = 2.0  # times the interval: a pass that comes later finds that the server was not paying attention
_GAPS = 256  # remembered apart; the oldest are then joined


class Attention:
    """When housekeeping came round. For the housekeeping thread."""

    def __init__(self, interval_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        """`interval_s`: how long housekeeping sleeps between two passes."""
        self._interval_s = interval_s
        self._now_s = now_s
        self._passed_s = now_s()
        self._gaps: deque[tuple[float, float]] = deque()  # (when it began, how long it was), oldest first

    def passes(self) -> bool:
        """Note a pass; False if it comes late: what was sent meanwhile may not have been read yet."""
        before_s, self._passed_s = self._passed_s, self._now_s()
        missed_s = self._passed_s - before_s - self._interval_s
        if missed_s <= (_LATE - 1) * self._interval_s:
            return True
        self._gaps.append((before_s + self._interval_s, missed_s))
        if len(self._gaps) > _GAPS:
            (_, first_s), (began_s, second_s) = self._gaps.popleft(), self._gaps.popleft()
            # As one, at the place of the later: sessions get more time, never less.
            self._gaps.appendleft((began_s, first_s + second_s))
        return False

    def attended(self) -> None:
        """The server has been paying attention since the pass, however long it took."""
        self._passed_s = self._now_s()

    def before_s(self, idle_s: float) -> float:
        """The time before which a session must have been used last to have been idle for `idle_s` at this pass."""
        at_s = self._passed_s - idle_s
        for began_s, missed_s in reversed(self._gaps):
            if began_s + missed_s <= at_s:
                break
            at_s -= missed_s
        return at_s
