"""The wakeup of an engine thread that also gets work from other processes: file descriptors wake it."""

from __future__ import annotations

import contextlib
import os
import select

from .ring import count


class EventWakeup:
    """A `Wakeup` that also returns while any watched descriptor is readable."""

    def __init__(self) -> None:
        self._own = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._own, select.EPOLLIN)

    def acquire(self) -> bool:
        """Sleep until `release` is called or a descriptor is readable; return at once if either is so already."""
        self._epoll.poll()
        count(self._own)
        return True

    def release(self) -> None:
        """Wake the sleeping thread."""
        os.eventfd_write(self._own, 1)

    def wait(self) -> set[int]:
        """Like `acquire`; returns the readable descriptors."""
        ready = {fd for fd, _ in self._epoll.poll()}
        count(self._own)
        return ready

    def close(self) -> None:
        """Close its descriptors. No thread may be sleeping on it."""
        self._epoll.close()
        os.close(self._own)

    def watch(self, fd: int, on: bool) -> None:
        """Start (`on`) or stop watching `fd`. From any thread."""
        if on:
            self._epoll.register(fd, select.EPOLLIN)
        else:
            with contextlib.suppress(OSError):  # already closed
                self._epoll.unregister(fd)
