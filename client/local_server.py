"""Runs `streamcell serve` in another process, for the demos, the benchmarks and the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_START_S = 60.0
# Of the log, in the error of a server that has not come up.
_LAST_LINES = 20
_HOST = "127.0.0.1"


class ServerProcessError(RuntimeError):
    """The server did not start; the text contains its output."""


class ServerProcess:
    """`streamcell serve` on free ports. A context manager that stops it with SIGTERM.

    Attributes:
        process: the child.
        log: its log lines, parsed.
        said: the lines on its standard error that are no log lines.
        target: "127.0.0.1:PORT", or its other host, of its gRPC port, once it serves.
        metrics_url: the URL of its Prometheus page, once it serves.
    """

    def __init__(
        self,
        models: Path,
        *flags: str,
        environment: Mapping[str, str | None] | None = None,
        module: Sequence[str] = ("streamcell.cli",),
        own_group: bool = False,
    ) -> None:
        """Start the server's process; `wait_until_up` waits until it serves.

        Args:
            models: the folder of models.
            flags: flags of `streamcell serve`.
            environment: environment variables of the server's process, in addition to this process's; None: without it.
            module: the module to run instead of the command line, followed by its first arguments.
            own_group: keep signals to this process's group, such as a terminal's Ctrl-C, from it.
        """
        command = [sys.executable, "-m", *module, "serve", "--models", str(models)]
        variables = {**os.environ, **(environment or {})}
        ports = ["--port", "0", "--metrics-port", "0", "--log-format", "json"]
        self.process = self._begin(
            [*command, *ports, *flags],
            {key: text for key, text in variables.items() if text is not None},
            own_group,
        )
        self.log: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.target = self.metrics_url = ""
        self._up = threading.Event()
        self._asked = False
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _begin(
        self, command: Sequence[str], environment: Mapping[str, str], own_group: bool
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=own_group,
        )

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                self.said.append(line)
                continue
            self.log.append(entry)
            if entry.get("event") == "serving":
                self.target = f"{_reached(entry.get('host', _HOST))}:{entry['port']}"
                metrics_host = _reached(entry.get("metrics_host", _HOST))
                self.metrics_url = f"http://{metrics_host}:{entry['metrics_port']}/metrics"
                self._up.set()
        self._up.set()

    def wait_until_up(self, timeout_s: float = _START_S) -> Self:
        """Wait until it serves.

        Raises:
            ServerProcessError: it ended, or took longer than `timeout_s`.
        """
        self._up.wait(timeout_s)
        if not self.target:
            raise ServerProcessError(self._why())
        return self

    def _why(self) -> str:
        """Why it does not serve, in the server's own words."""
        try:
            code = self.process.wait(1.0 if self._up.is_set() else 0)
        except subprocess.TimeoutExpired:
            how = "it still loads" if self.process.poll() is None else "it has just ended"
        else:
            how = f"exit code {code}"
        words = "".join(self.said).strip() or "\n".join(
            json.dumps(entry) for entry in self.log[-_LAST_LINES:]
        )
        return f"the server did not come up ({how}): {words or 'it has said nothing'}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.process.pid

    def metrics(self, name: str = "") -> str:
        """The text of its Prometheus page, or of the one metric `name` on it, which costs a fifth of the page."""
        url = self.metrics_url + (f"?name[]={name}" if name else "")
        with urllib.request.urlopen(url, timeout=60) as answer:
            text: str = answer.read().decode()
        return text

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the samples of `name` whose labels include `labels`; 0 if there is none."""
        from prometheus_client.parser import text_string_to_metric_families

        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics(name))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def ask_to_stop(self) -> None:
        """Send SIGTERM, only once: a second one would end the server at once."""
        if not self._asked and self.process.poll() is None:
            self._asked = True
            self.process.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = 30.0) -> int:
        """Ask it to stop, wait, and return its exit code; it is killed if it takes longer than `timeout_s`."""
        self.ask_to_stop()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._reader.join(timeout_s)
            if self.process.stderr is not None and not self._reader.is_alive():
                self.process.stderr.close()

    def __enter__(self) -> Self:
        return self.wait_until_up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _reached(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`, as a part of a URL."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
