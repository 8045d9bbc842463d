"""How long a client waits before it tries again. Without transport."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from streamcell.client.errors import StreamCellError

_LEAST_S = 0.01  # whatever a server says: 0 would have its client do nothing else, and no pause is negative
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_SPREAD = 0.25  # clients that were refused together do not come again together


class Retries:
    """The tries of one call or opening within its time limit."""

    def __init__(self, wait_s: float, clock: Callable[[], float] = time.monotonic, others: int = 0) -> None:
        """`wait_s`: the limit for all tries and pauses; infinite for none. `others`: servers besides the first one."""
        self._clock = clock
        self._others = others
        self._until_s = clock() + wait_s

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._until_s - self._clock())

    def pause_s(self, error: StreamCellError) -> float | None:
        """Seconds to wait before the next try; None for none.

        There is one if the server names a time that the limit has room for; at once if no server was reached, and
        there is another one.
        """
        if error.reason == "UNAVAILABLE" and self._others:
            self._others -= 1
            return 0.0
        if error.retry_after_s is None:
            return None
        pause_s = max(_LEAST_S, error.retry_after_s) * (1 + _SPREAD * random.random())
        return pause_s if pause_s < self.left_s else None


class Tries:
    """The tries of a session whose stream is lost, until a reply arrives: at once, then after growing pauses."""

    def __init__(self, resume_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`resume_s`: how long to go on trying."""
        self._resume_s = resume_s
        self._clock = clock
        self._count = 0
        self._first_s = 0.0

    def answered(self) -> None:
        """A reply has arrived."""
        self._count = 0

    def pause_s(self, least_s: float) -> float | None:
        """Seconds to wait before the next try, at least `least_s` but before the first; None if there is none."""
        now_s = self._clock()
        tries, self._count = self._count, self._count + 1
        if not tries:
            self._first_s = now_s
            return 0.0
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 10)) * random.uniform(0.5, 1)
        pause_s = max(pause_s, least_s)
        return pause_s if now_s + pause_s - self._first_s <= self._resume_s else None
