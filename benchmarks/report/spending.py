"""Where a step's CPU goes: the transport's and the model's share by subtraction, and perf's samples by library."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from streamcell.benchmarks.cases import ENGINE, LANE, OURS

from .outcomes import Results

_CPU = "server_cpu_us_per_step"
_FEWEST = 1.0  # percent: what is below is summed up as the rest


def split(results: Results, case: str) -> dict[str, float]:
    """µs of server CPU a step: the echo on the lane, the engine at the batch that was reached, and what is between.

    What is between is ours: parsing, queues, crossing to the engine thread and back, replies, metrics. The engine's
    share is taken at the size of batch that `case` had, between two sizes that were measured.
    """
    whole, lane = (results.median(case, name, _CPU) for name in (OURS, LANE))
    batch = results.median(case, OURS, "mean_batch")
    model = None if batch is None else _engine_us(results, batch)
    if whole is None or lane is None or model is None:
        return {}
    return {"whole": whole, "transport": lane, "model": model, "between": whole - lane - model}


def _engine_us(results: Results, batch: float) -> float | None:
    known = sorted(
        (rows, us)
        for case, server in results
        if server == ENGINE and case.startswith("ping-pong ")
        and (rows := results.median(case, ENGINE, "mean_batch")) and (us := results.median(case, ENGINE, _CPU))
    )  # fmt: skip
    if not known:
        return None
    below = max((pair for pair in known if pair[0] <= batch), default=known[0])
    above = min((pair for pair in known if pair[0] >= batch), default=known[-1])
    if above[0] == below[0]:
        return below[1]
    # A run's time is nearly a constant and a part for each row: interpolate that, not the time a row.
    share = (batch - below[0]) / (above[0] - below[0])
    return (below[0] * below[1] * (1 - share) + above[0] * above[1] * share) / batch


def by_library(pids: Sequence[int], load: Callable[[], object]) -> list[tuple[str, float]]:
    """(library, percent of the processes' samples) while `load` runs, largest first; empty if perf cannot."""
    perf = shutil.which("perf")
    if perf is None or not pids:
        return []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        recorder = subprocess.Popen(
            [perf, "record", "-q", "-F", "999", "-p", ",".join(map(str, pids)), "-o", str(data)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            load()
        finally:
            recorder.terminate()
            recorder.wait(20)
        told = subprocess.run(
            [perf, "report", "--stdio", "-q", "--sort", "dso", "-i", str(data)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    return _shares(told.stdout.splitlines())


def _shares(lines: Iterable[str]) -> list[tuple[str, float]]:
    found: dict[str, float] = {}
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0].endswith("%"):
            share, library = float(words[0][:-1]), _library(words[-1])
            found[library] = found.get(library, 0.0) + share
    large = [(library, share) for library, share in found.items() if share >= _FEWEST]
    rest = sum(found.values()) - sum(share for _, share in large)
    return [*large, ("the rest", round(rest, 2))] if large else []


def _library(file: str) -> str:
    known = {
        "kernel": "Linux", "cygrpc": "grpcio's core", "onnxruntime": "ONNX Runtime", "multiarray": "numpy",
        "_message": "protobuf", "upb": "protobuf", "libc.": "C library", "python": "Python's interpreter",
    }  # fmt: skip
    return next((name for part, name in known.items() if part in file), file)
