"""The bytes of one tenant's messages that the server has read and not answered."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .access_errors import QuotaExceeded

_RETRY_S = 0.1  # messages are answered soon, or refused


class BytesInFlight:
    """Counts them, and who waits until they are fewer. Thread-safe.

    Attributes:
        bytes: of the messages that were read and are not answered.
    """

    def __init__(self, most: Callable[[], int | None]) -> None:
        """`most`: returns the bound that holds now; None: there is none."""
        self._most = most
        self.bytes = 0
        self._waiting: dict[Callable[[], None], None] = {}
        self._lock = threading.Lock()

    @property
    def limited(self) -> bool:
        """True if there is a bound now."""
        return self._most() is not None

    def _full(self) -> bool:
        most = self._most()
        return most is not None and self.bytes >= most

    def take(self, size: int) -> None:
        """Count a message of `size` bytes: it has been read."""
        with self._lock:
            self.bytes += size

    def take_or_refuse(self, size: int, tenant: str) -> None:
        """As `take`, for a request that cannot wait. A large one is taken if nothing else is there.

        Raises:
            QuotaExceeded: it would be over the bound.
        """
        most = self._most()
        with self._lock:
            if most is not None and self.bytes and self.bytes + size > most:
                raise QuotaExceeded(
                    f"tenant {tenant!r} may have {most} bytes of unanswered messages and has {self.bytes}; this "
                    f"request has {size}: wait for answers, or try again later",
                    retry_s=_RETRY_S,
                    tenant=tenant,
                    quota="max_bytes_in_flight",
                    limit=most,
                )
            self.bytes += size

    def give(self, size: int) -> None:
        """Count `size` bytes no more: they are answered, or will never be."""
        with self._lock:
            self.bytes -= size
            woken: dict[Callable[[], None], None] = {}
            if self._waiting and not self._full():
                woken, self._waiting = self._waiting, woken
        for wake in woken:
            wake()

    def must_wait(self, wake: Callable[[], None]) -> bool:
        """True if nothing more may be read; then `wake` is called once that has changed."""
        with self._lock:
            full = self._full()
            if full:
                self._waiting[wake] = None
            return full

    def forget(self, wake: Callable[[], None]) -> None:
        """Do not call `wake`."""
        with self._lock:
            self._waiting.pop(wake, None)
