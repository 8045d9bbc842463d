"""What an engine's thread sleeps on if work comes from other processes, too: descriptors wake it."""

from __future__ import annotations

import contextlib
import os
import select

from .ring import count


class EventWakeup:
    """A `Wakeup` that every watched descriptor also wakes, for as long as it is readable."""

    def __init__(self) -> None:
        self._own = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._own, select.EPOLLIN)

    def acquire(self) -> bool:
        """Sleep until `release` is called or a descriptor is readable; return at once if one has happened."""
        self._epoll.poll()
        count(self._own)
        return True

    def release(self) -> None:
        """Wake the sleeping thread."""
        os.eventfd_write(self._own, 1)

    def wait(self) -> set[int]:
        """As `acquire`; returns the watched descriptors that are readable."""
        ready = {fd for fd, _ in self._epoll.poll()}
        count(self._own)
        return ready

    def close(self) -> None:
        """Close its descriptors. No thread may sleep on it."""
        self._epoll.close()
        os.close(self._own)

    def watch(self, fd: int, on: bool) -> None:
        """Be woken by `fd` while it is readable (`on`), or no longer. From any thread."""
        if on:
            self._epoll.register(fd, select.EPOLLIN)
        else:
            with contextlib.suppress(OSError):  # closed already
                self._epoll.unregister(fd)
