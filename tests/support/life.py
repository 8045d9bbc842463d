"""A server that is killed and started again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

from .forked import ForkedServer
from .frontends import processes


class Life:
    """A server with a journal that is killed and started again, on one port and one journal."""

    def __init__(self, folder: Path, journal: Path, port: int, frontends: int) -> None:
        """Start it on a folder of models."""
        self._arguments = (
            folder,
            "--port",
            str(port),
            "--durability",
            "process",
            "--journal-dir",
            str(journal),
        )
        self._frontends = frontends
        self.target = f"127.0.0.1:{port}"
        self.begin()

    def begin(self) -> None:
        """Start it again."""
        folder, *flags = self._arguments
        self.server = ForkedServer(
            folder, *flags, "--frontends", str(self._frontends), "--max-sessions", "64"
        )
        self.server.wait_until_up()

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        process = psutil.Process(self.server.pid)
        for each in [*process.children(recursive=True), process]:
            os.kill(each.pid, signal.SIGKILL)
        self.server.process.wait()

    def again(self) -> None:
        """Kill it, and start another."""
        self.kill()
        self.begin()

    def kill_engine(self) -> None:
        """SIGKILL to its engine process, once there is one, which its supervisor starts again."""
        while not (found := processes(self.server, "engine")):
            time.sleep(0.02)
        found[0].kill()
