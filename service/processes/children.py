"""The supervisor's child processes: the messages exchanged with each, and restarting one that died."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import structlog

from .pipe import OnMessage, Pipe

_log = structlog.get_logger(__name__)

# From the supervisor: the settings; make a link for a front end; send the metrics; take no new sessions; end; reload
# the certificate.
SETTINGS, ATTACH, SCRAPE, DRAIN, STOP, RELOAD = range(40, 46)
# To it: ready, or unable to serve; one model's rings; the rest of a front end's link; metrics; drained; whether it
# takes new sessions (number 1) or not (0); a client asks the server to shut down.
READY, UNFIT, RINGS, ATTACHED, SCRAPED, DRAINED, READINESS, DRAIN_ASKED = range(50, 58)

_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.1, 30.0
_LASTING_S = 30.0  # a process that ran for longer is restarted after the first pause
_PATIENCE_S = 5.0


class Child:
    """One process. It ends when its pipe closes."""

    def __init__(
        self, module: str, name: str, on_message: Callable[[Child, int, int, bytes, list[int]], None]
    ) -> None:
        """Start `python -m streamcell.service.processes.<module> FD`.

        Raises:
            OSError: the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"streamcell.service.processes.{module}", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,  # only the supervisor gets Ctrl-C's signal
            )
        self.name = name
        self.began_s = time.monotonic()
        self.pipe = Pipe(ours.detach())
        self.gone = threading.Event()

        def of_child(kind: int, number: int, body: bytes, fds: list[int]) -> None:
            on_message(self, kind, number, body, fds)

        self._on_message: OnMessage = of_child

    def start(self) -> None:
        """Begin to read its messages."""
        self.pipe.start(self.name, self._on_message, self._ended)

    def _ended(self) -> None:
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.gone.set()

    def finish(self, patience_s: float) -> None:
        """Wait for its end; kill it if it does not end in time."""
        if not self.gone.wait(patience_s):
            _log.warning("process killed because it did not end", process=self.name)
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.gone.wait()


class Supervised:
    """A child that is restarted whenever it dies, after pauses that grow while it dies soon."""

    def __init__(
        self, start: Callable[[], Child], begun: Callable[[Child], None], lost: Callable[[Child], None]
    ) -> None:
        """`begun` is called with each new child, `lost` with each that has died; both on this object's thread."""
        self._start = start
        self._begun = begun
        self._lost = lost
        self._stopping = threading.Event()
        self.child: Child | None = None
        self.restarts = 0
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        """Start the child for the first time.

        Raises:
            OSError: the process cannot be started.
        """
        self._begin()
        self._thread.start()

    def _begin(self) -> None:
        self.child = self._start()
        self._begun(self.child)
        self.child.start()

    def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            child = self.child
            if child is not None:
                child.gone.wait()
                self.child = None
                self._lost(child)
                if time.monotonic() - child.began_s > _LASTING_S:
                    pause_s = _FIRST_PAUSE_S
                if not self._stopping.is_set():
                    _log.error(
                        "process lost, restarting it",
                        process=child.name,
                        status=_status(child.process.returncode),
                        pause_s=pause_s,
                    )
            if self._stopping.wait(pause_s):
                return
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)
            self.restarts += 1
            try:
                self._begin()
            except OSError as error:
                _log.error("process cannot be started", error=str(error))

    def stop_restarting(self) -> None:
        """Do not restart the child from now on."""
        self._stopping.set()

    def stop(self) -> None:
        """Tell the child to end, and wait for its end."""
        self.stop_restarting()
        child = self.child
        if child is not None:
            child.pipe.send(STOP)
            child.finish(_PATIENCE_S)
        if self._thread.ident is not None:
            self._thread.join()


def _status(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return str(code)
