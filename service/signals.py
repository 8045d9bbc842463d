"""Handles a running server's signals: stop, stop now, reload the certificates."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from .logs.configure import flush

_log = structlog.get_logger(__name__)

HUNG = 3  # exit code of a server that did not stop in time
_STOPS = (signal.SIGTERM, signal.SIGINT)


class Stoppable(Protocol):
    """The part of a server that signals use."""

    def kill(self) -> None:
        """Kill its other processes at once."""

    def reload(self) -> None:
        """Reload its certificates."""


class Signals:
    """Handles signals on its own thread, so they are handled even while the main thread is busy."""

    def __init__(self, stop_within_s: float) -> None:
        """Take signals from now on. From the main thread. `stop_within_s`: from the first one to stop on."""
        self.server: Stoppable | None = None  # once there is one
        self._within_s = stop_within_s
        self._asked = threading.Event()
        self._ended = False
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._sockets = ours, theirs
        for number in (*_STOPS, signal.SIGHUP):
            signal.signal(number, lambda signum, frame: None)
        threading.Thread(target=self._take, name="signals", daemon=True).start()

    def wait(self) -> None:
        """Return once the server is asked to stop."""
        self._asked.wait()

    def done(self) -> None:
        """The server has stopped."""
        self._ended = True
        faulthandler.cancel_dump_traceback_later()

    def _take(self) -> None:
        while data := self._sockets[0].recv(64):
            for number in data:
                if number == signal.SIGHUP:
                    self._guarded(self.server.reload if self.server is not None else None)
                elif number not in _STOPS:
                    continue
                elif self._asked.is_set():
                    self._end(128 + number)
                else:
                    self._asked.set()
                    self._bound()

    def _bound(self) -> None:
        timer = threading.Timer(self._within_s, self._hung)
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # the machine may give no more threads
            timer.start()
        # This ends the process with exit code 1 even if no Python code can run any more.
        with contextlib.suppress(RuntimeError, OSError, ValueError):
            faulthandler.dump_traceback_later(self._within_s + 2.0, exit=True, file=2)

    def _hung(self) -> None:
        if self._ended:
            return
        # The reader of standard error may be what hangs.
        with contextlib.suppress(OSError):
            os.set_blocking(2, False)
        telling = threading.Thread(target=self._tell, daemon=True)
        with contextlib.suppress(RuntimeError):
            telling.start()
            telling.join(1.0)
        self._end(HUNG)

    def _tell(self) -> None:
        _log.error("not stopped in time, ending the process", seconds=self._within_s)
        flush(0.5)  # the thread that writes lines does not outlive the process
        faulthandler.dump_traceback(file=2, all_threads=True)

    def _end(self, code: int) -> None:
        self._guarded(self.server.kill if self.server is not None else None)
        os._exit(code)

    @staticmethod
    def _guarded(action: Callable[[], None] | None) -> None:
        try:
            if action is not None:
                action()
        except Exception as error:
            _log.error("signal handling failed", exc_info=error)
