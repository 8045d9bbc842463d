"""Time limits for blocking reads: one sleeping thread for each client, and one attribute to set for each read."""

from __future__ import annotations

import math
import threading
import time
import weakref
from typing import Protocol


class Watched(Protocol):
    """Something that waits. `due_s` is when its wait ends on `time.monotonic`; infinite while it does not wait."""

    due_s: float

    def time_out(self) -> None:
        """End the wait. Runs on the watchdog's thread."""


class Watchdog:
    """Times out whatever waits beyond its `due_s`. The thread starts with the first `add`."""

    def __init__(self) -> None:
        self._watched: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._changed = threading.Condition()
        self._wakes_s = math.inf
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, watched: Watched) -> None:
        """Watch for as long as it lives."""
        with self._changed:
            self._watched.add(watched)
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="streamcell-watchdog", daemon=True)
                self._thread.start()

    def arm(self, watched: Watched, due_s: float) -> None:
        """Let `watched` wait until `due_s`. Cheap unless no earlier wake-up is planned already."""
        watched.due_s = due_s
        if due_s < self._wakes_s:
            with self._changed:
                self._changed.notify()

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                # Set before the search, so that a session that is armed during it notifies.
                self._wakes_s = math.inf
                now_s = time.monotonic()
                late = [each for each in self._watched if each.due_s <= now_s]
                self._wakes_s = min(
                    (each.due_s for each in self._watched if each.due_s > now_s), default=math.inf
                )
                if not late:
                    wait_s = self._wakes_s - now_s
                    self._changed.wait(wait_s if math.isfinite(wait_s) else None)
            for each in late:
                each.due_s = math.inf
                each.time_out()
            late.clear()
