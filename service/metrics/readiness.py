"""Whether new sessions may be sent to this server: it serves, and nothing speaks against it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Readiness:
    """Said by the server as it starts and drains; anything that finds it unwell may hold it off."""

    def __init__(self) -> None:
        self._serving = False
        self._held: set[str] = set()
        self._listeners: list[Callable[[bool], None]] = []
        self._lock = threading.Lock()

    def __call__(self) -> bool:
        """Whether it is ready."""
        return self._serving and not self._held

    def serve(self, on: bool) -> None:
        """The server takes new sessions from now on, or no more."""
        self._change(lambda: setattr(self, "_serving", on))

    def hold(self, why: str) -> None:
        """Not ready for this reason, until `release`."""
        self._change(lambda: self._held.add(why))

    def release(self, why: str) -> None:
        """That reason is gone."""
        self._change(lambda: self._held.discard(why))

    def watch(self, listener: Callable[[bool], None]) -> None:
        """Have `listener` told now and after each change, which may be the same again."""
        with self._lock:
            self._listeners.append(listener)
        listener(self())

    def _change(self, change: Callable[[], object]) -> None:
        with self._lock:
            change()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(self())
