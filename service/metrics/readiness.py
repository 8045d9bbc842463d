"""Readiness: the server takes new sessions and no part of it reports trouble."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Readiness:
    """The server sets it when it starts and drains. Any part can declare the server unready for a reason."""

    def __init__(self) -> None:
        self._serving = False
        self._held: set[str] = set()
        self._listeners: list[Callable[[bool], None]] = []
        self._lock = threading.Lock()

    def __call__(self) -> bool:
        """True if the server is ready."""
        return self._serving and not self._held

    def serve(self, on: bool) -> None:
        """Note whether the server takes new sessions."""
        self._change(lambda: setattr(self, "_serving", on))

    def hold(self, why: str) -> None:
        """Declare the server unready for the reason `why`, until `release`."""
        self._change(lambda: self._held.add(why))

    def release(self, why: str) -> None:
        """Withdraw the reason `why`."""
        self._change(lambda: self._held.discard(why))

    def watch(self, listener: Callable[[bool], None]) -> None:
        """Call `listener` with the readiness now and after each change; it may get the same value twice."""
        with self._lock:
            self._listeners.append(listener)
        listener(self())

    def _change(self, change: Callable[[], object]) -> None:
        with self._lock:
            change()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(self())
