"""What a cluster costs: `python -m streamcell.benchmarks.cluster` prints it; benchmarks/results/cluster.json has it.

- levels: the server's CPU time of a step and the latency that each level of durability adds, with the store's CPU time;
- pauses: how long sessions pause if their replica is stopped with SIGTERM, or killed;
- throughput: steps a second through Envoy, through HAProxy and without a proxy, with one to three replicas.

Ways take turns, and every other round has the reverse order. All parts are on this machine, so with few cores they
take time from each other: then read the ratios, and the CPU times, not the throughput.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from streamcell.benchmarks import machine, specimens
from streamcell.benchmarks.report.report import rounded, table
from streamcell.client.local_cluster import Proxy

from .levels import costs
from .pauses import pauses
from .throughput import measured

_ROOT = Path(__file__).parents[2]
PARTS = ("levels", "pauses", "throughput")
MODEL = "lstm"
PAUSED: tuple[tuple[str, Proxy], ...] = (
    ("store-async", "envoy"), ("store-async", "haproxy"), ("store-sync", "envoy"),
)  # fmt: skip
GOAL = 1.5  # store-async's CPU time over that of none


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m streamcell.benchmarks.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="one short round of each: to see that it runs")
    parser.add_argument(
        "--sessions", type=int, nargs="+", default=[64, 256], metavar="N", help="of the levels"
    )
    parser.add_argument("--rounds", type=int, default=6, help="of levels and throughput")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load in each round")
    parser.add_argument(
        "--replicas", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="of throughput"
    )
    parser.add_argument("--stops", type=int, default=9, help="replicas stopped in order")
    parser.add_argument("--kills", type=int, default=6, help="replicas killed")
    parser.add_argument("--json", type=Path, default=_ROOT / "benchmarks/results/cluster.json")
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.rounds, asked.seconds, asked.sessions, asked.replicas = 1, 0.3, [8], [1]
        asked.stops = asked.kills = 1
    return asked


def run(asked: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure with the options `asked`; returns the report as JSON values. What was not asked for is not in it."""
    report: dict[str, Any] = {
        "date": machine.today(),
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "settings": {name: getattr(asked, name) for name in ("rounds", "seconds", "quick")},
    }
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        specimens.export(models, MODEL)
        if "levels" in asked.parts:
            lines = costs(models, MODEL, asked.sessions, asked.rounds, asked.seconds, say)
            report["levels"] = rounded(lines)
        if "pauses" in asked.parts:
            report["pauses"] = [
                pauses(
                    models, MODEL, durability=level, proxy=proxy, sessions=max(asked.sessions[0], 2),
                    stops=asked.stops, kills=asked.kills, say=say,
                )
                for level, proxy in PAUSED
            ]  # fmt: skip
        if "throughput" in asked.parts:
            lines = measured(
                models, MODEL, replicas=asked.replicas, sessions=asked.sessions[0], rounds=asked.rounds,
                seconds=asked.seconds, say=say,
            )  # fmt: skip
            report["throughput"] = rounded(lines)
    report["hardware"]["load average after"] = f"{os.getloadavg()[0]:.2f}"
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report's tables."""
    found = [
        show(report[part])
        for part, show in (("levels", _levels), ("pauses", _pauses), ("throughput", _throughput))
        if part in report
    ]
    return "\n\n".join(found)


def _levels(lines: list[dict[str, Any]]) -> str:
    head = (
        "sessions", "level", "CPU µs a step", "over `none`", "store's CPU µs", "p50 ms", "p50 over `none`'s",
        "p99 ms", "mean batch", "steps/s",
    )  # fmt: skip
    rows = [
        [
            str(line["sessions"]), f"`{line['level']}`", f"{line['server_cpu_us_per_step']:.1f}",
            f"×{line['over']:.2f} ({line['over_range'][0]:.2f} to {line['over_range'][1]:.2f})",
            f"{line['store_cpu_us_per_step']:.1f}", f"{line['p50_ms']:.2f}", f"{line['added_ms']:+.2f}",
            f"{line['p99_ms']:.2f}", f"{line['mean_batch']:.1f}", f"{line['steps_per_s']:,.0f}",
        ]
        for line in lines
    ]  # fmt: skip
    return table(head, rows)


def _pauses(lines: list[dict[str, Any]]) -> str:
    rows = [
        [f"{line['durability']}, {line['proxy']}", name, *_pause(line[name])]
        for line in lines
        for name in ("steady", "moved", "resumed")
    ]
    return table(("level, proxy", "steps", "count", "p50 ms", "p99 ms", "longest ms"), rows)


def _throughput(lines: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(line["replicas"]), line["way"], f"{line['steps_per_s']:,.0f}", f"×{line['over']:.2f}",
            f"{line['p50_ms']:.2f}", f"{line['p99_ms']:.2f}",
            f"{line['proxy_cpu_us_per_step']:.1f}" if line["proxy_cpu_us_per_step"] else "",
        ]
        for line in lines
    ]  # fmt: skip
    head = ("replicas", "way", "steps/s", "over direct", "p50 ms", "p99 ms", "proxy's CPU µs a step")
    return table(head, rows)


def _pause(figures: dict[str, float]) -> list[str]:
    names = ("p50_ms", "p99_ms", "longest_ms")
    return [f"{figures['count']:,}", *(f"{figures[name]:,.0f}" if name in figures else "" for name in names)]


def goals(report: dict[str, Any]) -> list[tuple[str, bool]]:
    """Each goal, as a text with what was measured, and whether it is met."""
    return [
        (
            f"store-async takes at most {GOAL:g} × none's CPU, {line['sessions']} sessions: ×{line['over']:.2f}",
            line["over"] <= GOAL,
        )
        for line in report.get("levels", [])
        if line["level"] == "store-async"
    ]


def main() -> None:
    """Measure, write the JSON and print the tables."""
    asked = parse(sys.argv[1:])
    report = run(asked, lambda text: print(text, file=sys.stderr))
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(report, indent=1) + "\n")
    print(markdown(report))
    for text, met in goals(report):
        print(f"{'met' if met else 'MISSED'}: {text}")
    print(f"written: {asked.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
