"""One load from several generators at once: a single Python process cannot load a server of many cores."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from .spec import Load

_QUANTILES = 1001
_OPENING_S = 0.5  # and a second a thousand sessions


class Runs(Protocol):
    """A generator."""

    def run(self, load: Load) -> dict[str, Any]:
        """Run one load. Raises LoadError if it fails."""


def run_together(generators: Sequence[Runs], load: Load) -> dict[str, Any]:
    """Divide the sessions and connections of `load` among the generators, which measure in the same window.

    Returns:
        The figures of `Window.end` for all of them together: throughput is their sum, and a latency's percentile is
        that of all messages.

    Raises:
        LoadError: one of them failed.
    """
    count = min(len(generators), load.sessions)
    begin_s = time.time() + load.warm_up_s + _OPENING_S + load.sessions / 1000
    parts = [
        replace(
            load,
            sessions=share(load.sessions, count, number),
            connections=max(1, share(load.connections, count, number)),
            begin_s=begin_s,
            quantiles=_QUANTILES,
        )
        for number in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda pair: pair[0].run(pair[1]), zip(generators, parts, strict=False)))
    return merged(found)


def share(whole: int, parts: int, number: int) -> int:
    """The size of part `number` of `whole`, divided as evenly as integers can be."""
    return whole // parts + (number < whole % parts)


def merged(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several windows that were measured together as one."""
    result: dict[str, Any] = {
        name: sum(each[name] for each in found) for name in ("messages", "steps", "steps_per_s")
    }
    values = np.concatenate([each["quantiles_ms"] for each in found])
    weights = np.repeat([each["messages"] for each in found], [len(each["quantiles_ms"]) for each in found])
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / weights.sum()
    for name, quantile in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999)):
        result[name] = float(values[order][np.searchsorted(below, quantile)])
    if all("server_cores" in each for each in found):
        # Each generator has measured the whole server.
        result["server_cores"] = statistics.fmean(each["server_cores"] for each in found)
        result["server_cpu_us_per_step"] = result["server_cores"] / result["steps_per_s"] * 1e6
    return result
