"""Time limits for blocking reads: one sleeping thread for each client; each read only sets an attribute."""

from __future__ import annotations

import math
import threading
import time
import weakref
from typing import Protocol


class Watched(Protocol):
    """An object whose wait may time out at `due_s`, by `time.monotonic`; infinite while it does not wait."""

    due_s: float

    def time_out(self) -> None:
        """End the wait. The watchdog's thread calls it."""


class Watchdog:
    """Times out objects that wait beyond their `due_s`. The thread starts with the first `add`."""

    def __init__(self) -> None:
        self._watched: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._changed = threading.Condition()
        self._wakes_s = math.inf
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, watched: Watched) -> None:
        """Watch `watched` until it is garbage-collected."""
        with self._changed:
            self._watched.add(watched)
            if self._thread is None and not self._stopped:
                thread = threading.Thread(target=self._run, name="streamcell-watchdog", daemon=True)
                thread.start()
                self._thread = thread

    def arm(self, watched: Watched, due_s: float) -> None:
        """Let `watched` wait until `due_s`. Cheap if the thread wakes up earlier anyway."""
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
