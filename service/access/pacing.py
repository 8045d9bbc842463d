"""Holds tenants to a rate: stops reading a tenant's streams until its average rate is within the limit."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

import structlog

from streamcell.service.threads import started

_log = structlog.get_logger(__name__)

_BURST_S = 1.0  # a tenant that was idle may send so many seconds' steps at once
_LOOK_S = 1.0  # whoever waits longer is asked so often whether it still does: a wait may be of days


class Rate:
    """Timesteps a second on average: the generic cell rate algorithm (ITU-T I.371). Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._even_s = -_BURST_S  # when all that was sent is paid for
        self._lock = threading.Lock()

    def spend(self, steps: int, per_s: float) -> float:
        """Charge `steps` timesteps at `per_s` a second; returns for how many seconds the tenant may send no more."""
        with self._lock:
            now_s = self._clock()
            self._even_s = max(self._even_s, now_s - _BURST_S) + steps / per_s
            return max(0.0, self._even_s - now_s)

    def due(self) -> float:
        """How long nothing may be sent."""
        with self._lock:
            return max(0.0, self._even_s - self._clock())

    @property
    def rested(self) -> bool:
        """True if nothing that was sent counts any more: a new one would allow as much."""
        with self._lock:
            return self._even_s <= self._clock() - _BURST_S


class Later:
    """Calls functions later, on one thread, which starts with `start` or the first of them. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, so that no stream depends on whether the machine gives one later.

        Raises:
            NoThread: the machine gives no more threads.
        """
        with self._changed:
            self._begin()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = started("pacing", self._work)

    def call(self, after_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` in `after_s` seconds.

        Raises:
            NoThread: the thread has not been started, and the machine gives none.
        """
        with self._changed:
            self._begin()
            heapq.heappush(self._calls, (self.clock() + after_s, next(self._numbers), callback))
            self._changed.notify()

    def run_due(self) -> float | None:
        """Call what is due; returns the seconds until the next one, None if there is none."""
        while True:
            with self._changed:
                if not self._calls:
                    return None
                wait_s = self._calls[0][0] - self.clock()
                if wait_s > 0:
                    return wait_s
                callback = heapq.heappop(self._calls)[2]
            try:
                callback()
            except Exception as error:  # a bug ends one call, not the thread
                _log.error("resuming a paced call failed", exc_info=error)

    def _work(self) -> None:
        while True:
            wait_s = self.run_due()
            with self._changed:
                if wait_s is not None or not self._calls:
                    self._changed.wait(wait_s)


LATER = Later()


class Pace:
    """One stream of a tenant with a rate limit. The server does not read it while the tenant is over the limit."""

    def __init__(
        self, spend: Callable[[int], float], resume: Callable[[], None], later: Later = LATER
    ) -> None:
        """Make it.

        Args:
            spend: charges timesteps to the tenant, and returns for how long it may send no more.
            resume: resumes reading the stream.
            later: calls it.
        """
        self._spend = spend
        self._resume = resume
        self._later = later
        self._waiting = self._ended = False
        self._due_s = 0.0

    def after(self, steps: int, room: bool) -> bool:
        """A message of `steps` timesteps was accepted; `room`: its queue has room. True if the stream may be read."""
        wait_s = self._spend(steps)
        if wait_s > 0 and not self._waiting:
            self._due_s = self._later.clock() + wait_s
            self._later.call(min(wait_s, _LOOK_S), self._look)
            self._waiting = True
        return room and not self._waiting

    def may_resume(self) -> bool:
        """True if the stream may be read once its queue has room; else `resume` is called when the wait is over."""
        return not self._waiting

    def end(self) -> None:
        """The stream is over: soon nothing refers to it any more."""
        self._ended = True

    def _look(self) -> None:
        left_s = self._due_s - self._later.clock()
        if self._ended:
            return
        if left_s > 0:
            self._later.call(min(left_s, _LOOK_S), self._look)
        else:
            self._waiting = False
            self._resume()
