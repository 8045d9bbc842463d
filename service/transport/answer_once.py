"""Ensures that a unary call is answered at most once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mypy_extensions import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class AnswerOnce:
    """The part of a `calls.UnaryCall` that ensures it. Thread-safe."""

    __slots__ = ("_callback", "_cancelled", "_done", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = self._cancelled = False
        self._callback: Callable[[], None] | None = None

    def _first(self) -> bool:
        """True if the call may be answered now: it has not been, and its client has not gone."""
        with self._lock:
            done, self._done = self._done, True
            self._callback = None
        return not done

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` if the call ends before it is answered."""
        with self._lock:
            if not self._done:
                self._callback = callback
            if not self._cancelled:
                return
        callback()

    def _gone(self) -> bool:
        """Note that the call is over; True if it was not answered, and will not be."""
        with self._lock:
            gone = self._cancelled = not self._done
            self._done = True
            callback, self._callback = self._callback, None
        if callback is not None:
            callback()
        return gone
