"""The life of a process that a supervisor has started: it does as it is told through a pipe and ends with that."""

from __future__ import annotations

import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from streamcell.service.logs.configure import flush

from .pipe import Pipe


class ChildProcess(ABC):
    """What such a process does."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._stopped = threading.Event()

    @abstractmethod
    def came(self, kind: int, number: int, body: bytes, fds: list[int]) -> None:
        """A message of the supervisor's."""

    def stop(self) -> None:
        """The process may end."""
        self._stopped.set()

    def wait(self) -> None:
        """Return once it may."""
        self._stopped.wait()


def run(make: Callable[[Pipe], ChildProcess]) -> None:
    """Run until told otherwise, or until the supervisor has gone. The command line names the pipe's descriptor."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the supervisor's to deal with
    pipe = Pipe(int(sys.argv[1]))
    process = make(pipe)
    pipe.start("supervisor", process.came, lambda: os._exit(1))
    process.wait()
    flush()
    os._exit(0)
