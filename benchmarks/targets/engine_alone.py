"""The engine alone as a target of loads: runs with as many rows as the load has sessions, in a loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from streamcell.benchmarks.engine import Ways
from streamcell.benchmarks.load.spec import Load
from streamcell.service.engine.device import Device
from streamcell.service.repository.model_file import open_model

_MAX_BATCH = 256  # the server's own default
_MAX_CHUNK = 64
_MOST_S = 0.4  # its figures spread little


class Alone:
    """Runs the models of a folder in this process without a server: the upper bound for their server."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._ways: dict[str, Ways] = {}

    def run(self, load: Load) -> dict[str, Any]:
        """Run `load.model` over and over: steps/s and CPU a step, of this process."""
        ways = self._ways.get(load.model)
        if ways is None:
            file = open_model(self._models / f"{load.model}.onnx", load.model)
            ways = self._ways[load.model] = Ways(file, Device(), _MAX_BATCH, _MAX_CHUNK)
        rows = min(load.sessions, _MAX_BATCH)
        once = ways.by_engine(rows, load.steps)
        once()
        runs = 0
        began_s, own_s = time.perf_counter(), time.process_time()
        until_s = began_s + min(load.measure_s, _MOST_S)
        while time.perf_counter() < until_s:
            once()
            runs += 1
        took_s, own_s = time.perf_counter() - began_s, time.process_time() - own_s
        steps = runs * rows * load.steps
        return {
            "steps_per_s": steps / took_s,
            "server_cpu_us_per_step": own_s / steps * 1e6,
            "mean_batch": float(rows),
        }
