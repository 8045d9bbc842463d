"""Processes of a run: load generators and yardstick servers."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from streamcell.benchmarks.load.spec import Load, LoadError, as_line
from streamcell.service.transport.grpc_polling import CHOICE, VARIABLE

# A load gives up waiting for a server earlier, and says for what.
_PATIENCE_S = 240.0


class _Child:
    """A Python module run as a process; ended with the `with`."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"streamcell.benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def _line(self) -> str:
        assert self.process.stdout is not None
        said = select.poll()
        said.register(self.process.stdout, select.POLLIN)
        if not said.poll(1000 * _PATIENCE_S):
            raise LoadError(f"{self.process.args!r} has said nothing for {_PATIENCE_S:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise LoadError(f"{self.process.args!r} ended with {self.process.wait()}")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Generator(_Child):
    """A load generator in a process of its own."""

    def __init__(self) -> None:
        # The client's core, too, reads in the thread that waits.
        super().__init__("load.main", environment={VARIABLE: CHOICE, **os.environ})

    def run(self, load: Load) -> dict[str, Any]:
        """Run one load there.

        Raises:
            LoadError: it failed; the text says how.
        """
        self._say(as_line(load))
        result: dict[str, Any] = json.loads(self._line())
        if "error" in result:
            raise LoadError(f"{load}: {result['error']}")
        return result

    def end_sessions(self) -> None:
        """End the sessions that a load with `hold` keeps open."""
        self._say("\n")
        self._line()

    def _say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()


class EchoServer(_Child):
    """A yardstick server; `kind` is "aio" or "lane"."""

    def __init__(self, kind: str) -> None:
        # `grpc.aio` as everybody gets it, the lane as the server has it.
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        super().__init__(
            "targets.echo", kind, environment=environment | ({VARIABLE: CHOICE} if kind == "lane" else {})
        )
        self.target = f"127.0.0.1:{int(self._line())}"
