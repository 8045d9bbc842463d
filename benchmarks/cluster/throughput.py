"""Steps a second through Envoy, through HAProxy and without a proxy, with one replica and more."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from streamcell.benchmarks.load.several import run_together
from streamcell.benchmarks.load.spec import Load
from streamcell.benchmarks.report.outcomes import Results
from streamcell.benchmarks.targets.processes import Generator
from streamcell.client.local_cluster import NAMES, LocalCluster, Proxy

WAYS = ("direct", "envoy", "haproxy")


def measured(
    models: Path,
    model: str,
    *,
    replicas: Sequence[int],
    sessions: int,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Load clusters of so many `replicas` with ping-pong, by each way in turn, every other round in reverse.

    Returns:
        A line for each number of replicas and each way: medians of the rounds. `proxy_cpu_us_per_step` is the proxy's
        CPU time; `over` is the median of the rounds' ratios of throughput to that without a proxy.
    """
    results = Results()
    with ExitStack() as stack:
        generators = [stack.enter_context(Generator()) for _ in range(max(1, (os.cpu_count() or 2) // 4))]
        for count in replicas:
            with ExitStack() as running:
                ways = _ways(models, count, sessions, running)
                for turn in range(-1, rounds):  # the first one is not counted: servers are slow at first
                    for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                        target, proxy = ways[way]
                        load = Load(
                            target, "resumable", model, sessions=sessions, connections=count, pids=proxy,
                            measure_s=seconds,
                        )  # fmt: skip
                        figures = run_together(generators, load)
                        if turn < 0:
                            continue
                        results.add(str(count), way, figures)
                        say(
                            f"{turn + 1}/{rounds}  {count} replicas  {way:<8} {figures['steps_per_s']:>9,.0f} steps/s"
                        )
    return [_line(results, count, way) for count in replicas for way in WAYS]


def _ways(
    models: Path, count: int, sessions: int, running: ExitStack
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Where each way's load goes, and its proxy's process."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    flags = ("--max-sessions", str(2 * sessions))
    proxies: tuple[Proxy, ...] = ("envoy", "haproxy")
    for way in proxies:
        cluster = LocalCluster(models, *flags, names=NAMES[:count], durability="none", proxy=way)
        running.enter_context(cluster)
        assert cluster.proxy is not None
        found[way] = (cluster.target, (cluster.proxy.process.pid,))
        # The first one's replicas; the other one's are idle then.
        found.setdefault("direct", (",".join(each.target for each in cluster.replicas.values()), ()))
    return found


def _line(results: Results, count: int, way: str) -> dict[str, Any]:
    case = str(count)
    return {
        "replicas": count,
        "way": way,
        **{name: results.median(case, way, name) for name in ("steps_per_s", "p50_ms", "p99_ms")},
        "proxy_cpu_us_per_step": results.median(case, way, "server_cpu_us_per_step"),
        "over": results.ratio(case, "steps_per_s", "direct", server=way),
    }
