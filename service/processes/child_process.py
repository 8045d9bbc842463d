"""A process that the supervisor starts: it obeys messages from a pipe and ends when the pipe closes."""

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
    """Base of the supervisor's child processes."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._stopped = threading.Event()

    @abstractmethod
    def on_message(self, kind: int, number: int, body: bytes, fds: list[int]) -> None:
        """Handle a message from the supervisor."""

    def stop(self) -> None:
        """Let `wait` return."""
        self._stopped.set()

    def wait(self) -> None:
        """Wait until `stop` is called."""
        self._stopped.wait()


def run(make: Callable[[Pipe], ChildProcess]) -> None:
    """Run until `stop` is called or the supervisor ends. The command line names the pipe's descriptor."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the supervisor handles signals
    pipe = Pipe(int(sys.argv[1]))
    process = make(pipe)
    pipe.start("supervisor", process.on_message, lambda: os._exit(1))
    process.wait()
    flush()
    os._exit(0)
