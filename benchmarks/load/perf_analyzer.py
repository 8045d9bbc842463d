"""Triton's own client, perf_analyzer, as a load: sequences of single steps, each on its own stream."""

from __future__ import annotations

import csv
import math
import resource
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dialects import payload
from .oip import requests_and_runs
from .spec import Load, LoadError
from .usage import cpu_s, scheduling_group

# It takes the mean of three windows once they are alike; with this, any three are.
_WINDOWS, _ALIKE_PERCENT = 3, "100000"
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class PerfAnalyzer:
    """The program, or a script that ends in `exec` of it."""

    program: Path

    def run(self, load: Load, *, steps: int, apart: bool) -> dict[str, Any]:
        """Keep `load.sessions` requests under way in as many sequences.

        Args:
            load: the server, which speaks the Open Inference Protocol, its model and how many sequences; `measure_s` is
                the length of each of the three windows that perf_analyzer measures.
            steps: of each sequence; its next one begins when it has ended.
            apart: in a login session of its own, which gives perf_analyzer a scheduling group of its own.

        Returns:
            steps_per_s, p50_ms, p99_ms: what perf_analyzer found in its windows.
            server_cpu_us_per_step: CPU time of the server's processes from perf_analyzer's start to its end, over the
                requests that the server says it has answered in that time.
            mean_batch: of the server's runs in that time.
            client_cpu_us_per_step: perf_analyzer's own.
            client_group: its scheduling group.

        Raises:
            LoadError: it failed; the end of what it said.
        """
        with tempfile.TemporaryDirectory() as folder:
            data, table = Path(folder) / "data", Path(folder) / "table.csv"
            data.mkdir()
            (data / load.input_name).write_bytes(payload(4 * math.prod(load.input_shape), 1))
            flags: dict[str, object] = {
                "-m": load.model,
                "-u": load.target,
                "-i": "grpc",
                "--sequence-length": steps,
                "--sequence-length-variation": 0,
                "--concurrency-range": load.sessions,
                "--input-data": data,
                "-p": round(load.measure_s * 1000),
                "-r": _WINDOWS,
                "-s": _ALIKE_PERCENT,
                "-f": table,
            }
            command = [str(self.program.resolve()), "--streaming"]
            command += [str(word) for pair in flags.items() for word in pair]

            def spent() -> tuple[float, ...]:
                applied = requests_and_runs(load.target, load.model)
                return (*applied, cpu_s(load.pids), _children_s())

            before = spent()
            group = _run(command, apart)
            answered, runs, server_s, own_s = (now - then for now, then in zip(spent(), before, strict=True))
            if not answered or not table.is_file():
                raise LoadError(f"{command} has measured nothing")
            figures = read_table(table.read_text())
        return {
            **figures,
            "mean_batch": answered / runs,
            "server_cpu_us_per_step": server_s / answered * 1e6,
            "client_cpu_us_per_step": own_s / answered * 1e6,
            "client_group": group,
        }

    def version(self) -> str:
        """What the program says that it is."""
        command = [str(self.program.resolve()), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).strip().removeprefix("Perf Analyzer Version ")


def read_table(text: str) -> dict[str, float]:
    """steps_per_s, p50_ms and p99_ms of the CSV file that perf_analyzer writes with `-f`, which is in microseconds.

    Raises:
        LoadError: it has not one line with these columns.
    """
    lines: list[Mapping[str, str]] = list(csv.DictReader(text.splitlines()))
    try:
        (line,) = lines
        return {
            "steps_per_s": float(line["Inferences/Second"]),
            "p50_ms": float(line["p50 latency"]) / 1000,
            "p99_ms": float(line["p99 latency"]) / 1000,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"expected perf_analyzer's table with one line; got {text!r}") from error


def _run(command: list[str], apart: bool) -> str:
    """Run it; the scheduling group that it ran in."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=apart
    ) as process:
        group = scheduling_group(process.pid)
        try:
            said, _ = process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise LoadError(f"{command} has not ended within {_PATIENCE_S:g} s") from error
        if process.returncode:
            raise LoadError(f"{command} ended with {process.returncode}: {said.strip()[-1000:]}")
    return group


def _children_s() -> float:
    """CPU time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
