"""What tests share: small exported models of every kind, and real servers in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from streamcell.export import export_model
from streamcell.models import build

INPUT, HIDDEN, OUTPUT, LAYERS = 3, 16, 2, 2

CONFIGS = {
    "lstm": {
        "kind": "lstm",
        "input_size": INPUT,
        "hidden_size": HIDDEN,
        "output_size": OUTPUT,
        "num_layers": LAYERS,
    },
    "gru": {
        "kind": "gru",
        "input_size": INPUT,
        "hidden_size": HIDDEN,
        "output_size": OUTPUT,
        "num_layers": LAYERS,
    },
    "rnn": {
        "kind": "rnn",
        "input_size": INPUT,
        "hidden_size": HIDDEN,
        "output_size": OUTPUT,
        "num_layers": LAYERS,
    },
    "mlp": {"kind": "mlp", "input_size": INPUT, "hidden_sizes": [HIDDEN, HIDDEN], "output_size": OUTPUT},
}


@pytest.fixture(scope="session")
def modules() -> dict[str, torch.nn.Module]:
    """One small PyTorch module of every kind, in evaluation mode, by the name it is served under."""
    torch.manual_seed(7)
    return {name: build(config).eval() for name, config in CONFIGS.items()}


@pytest.fixture(scope="session")
def models_dir(modules: dict[str, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every module exported."""
    folder = tmp_path_factory.mktemp("models")
    for name, module in modules.items():
        export_model(module, folder / f"{name}.onnx", name=name)
    return folder


@dataclass
class ServerProcess:
    """`streamcell serve` as a user starts it, in a process of its own."""

    process: subprocess.Popen[str]
    log: list[dict[str, object]] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    target: str = ""
    metrics_url: str = ""
    _up: threading.Event = field(default_factory=threading.Event)

    def read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if not line.startswith("{"):
                self.plain.append(line)
                continue
            entry = json.loads(line)
            self.log.append(entry)
            if entry["event"] == "serving":
                self.target = f"127.0.0.1:{entry['port']}"
                self.metrics_url = f"http://127.0.0.1:{entry['metrics_port']}/metrics"
                self._up.set()
        self._up.set()

    def wait_until_up(self) -> ServerProcess:
        self._up.wait(60)
        if not self.target:
            pytest.fail(
                f"the server did not come up (exit {self.process.poll()}): {self.log} {''.join(self.plain)}"
            )
        return self

    @property
    def pid(self) -> int:
        return self.process.pid

    def metrics(self) -> str:
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` whose labels include `labels`."""
        from prometheus_client.parser import text_string_to_metric_families

        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def stop(self, timeout_s: float = 30) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def start_server() -> Iterator[Serve]:
    """Starts a server on a folder of models, with flags and environment; all are stopped at the end."""
    started: list[ServerProcess] = []

    def start(models: Path, *flags: str, wait: bool = True, **environment: str) -> ServerProcess:
        executable = Path(sys.executable).with_name("streamcell")
        ports = ("--port", "0", "--metrics-port", "0")
        process = subprocess.Popen(
            [executable, "serve", "--models", models, *ports, *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        server = ServerProcess(process)
        threading.Thread(target=server.read_log, daemon=True).start()
        started.append(server)
        return server.wait_until_up() if wait else server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(10)


@pytest.fixture(scope="session")
def served(start_server: Serve, models_dir: Path) -> ServerProcess:
    """One server with every kind of model, shared by the tests that leave it as it was."""
    return start_server(models_dir)
