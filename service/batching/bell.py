"""What an engine's thread sleeps on: a lock, or, where work comes from other processes too, many descriptors."""

from __future__ import annotations

import contextlib
import os
import select
from typing import Protocol

from streamcell.service.processes.ring import count


class Bell(Protocol):
    """What the engine's thread sleeps on: a lock, or something that other things ring too."""

    def acquire(self) -> bool:
        """Sleep until it is rung, or has been since."""

    def release(self) -> None:
        """Ring it."""


class EventBell:
    """A `Bell` that is also rung by every descriptor that is watched, for as long as it is readable."""

    def __init__(self) -> None:
        self._own = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._own, select.EPOLLIN)

    def acquire(self) -> bool:
        """Sleep until it is rung, or has been since."""
        self._epoll.poll()
        count(self._own)
        return True

    def release(self) -> None:
        """Ring it."""
        os.eventfd_write(self._own, 1)

    def wait(self) -> set[int]:
        """As `acquire`; which of the watched descriptors are readable."""
        ready = {fd for fd, _ in self._epoll.poll()}
        count(self._own)
        return ready

    def close(self) -> None:
        """Close its descriptors. Nobody sleeps on it."""
        self._epoll.close()
        os.close(self._own)

    def watch(self, fd: int, on: bool) -> None:
        """Be rung by `fd` while it is readable, or no longer. From any thread."""
        if on:
            self._epoll.register(fd, select.EPOLLIN)
        else:
            with contextlib.suppress(OSError):  # closed already
                self._epoll.unregister(fd)
