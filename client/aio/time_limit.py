"""A time limit for an asyncio session's waits, with one timer for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class TimeLimit:
    """Calls `expire` once if a wait between `start` and `stop` takes longer than `timeout_s`.

    Attributes:
        timeout_s: the limit; infinite for none.
        passed: True once it has expired.
    """

    __slots__ = ("_due_s", "_expire", "_timer", "passed", "timeout_s")

    def __init__(self, timeout_s: float, expire: Callable[[], None]) -> None:
        self.timeout_s = timeout_s
        self.passed = False
        self._expire = expire
        self._due_s = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Note that a wait begins."""
        if math.isfinite(self.timeout_s):
            loop = asyncio.get_running_loop()
            self._due_s = loop.time() + self.timeout_s
            if self._timer is None:
                self._timer = loop.call_at(self._due_s, self._look)

    def stop(self) -> None:
        """Note that the wait is over. The timer stays, for the next wait."""
        self._due_s = math.inf

    def close(self) -> None:
        """Cancel the timer: no waits follow."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if self._due_s <= loop.time():
            self.passed = True
            self._expire()
        elif math.isfinite(self._due_s):
            self._timer = loop.call_at(self._due_s, self._look)
