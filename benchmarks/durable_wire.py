"""What a resumable session costs over gRPC, compared with a usual one: the server's CPU time a step.

`python -m streamcell.benchmarks.durable_wire` puts the same load on two servers, one with `--durability none` and one
with `process`. The ways take turns, and "… again" shows how much two equal ways differ. The load generator costs the
same for all ways, so no way has smaller batches only because its client is slower.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamcell.benchmarks.targets.processes import Generator
from streamcell.client.local_server import ServerProcess

from .cases import Case, Target
from .on_the_wire import measure
from .report.outcomes import Results
from .specimens import export

MODEL = "lstm"
WAYS = ("usual", "usual again", "none", "none again", "process")
_FIGURES = ("server_cpu_us_per_step", "mean_batch", "steps_per_s")
_RATIOS = (("usual again", "usual"), ("none", "usual"), ("none again", "none"), ("process", "none"))


def _targets(none: ServerProcess, process: ServerProcess) -> dict[str, Target]:
    def target(way: str, server: ServerProcess) -> Target:
        def batches() -> tuple[float, float]:
            return server.metric("streamcell_batch_rows_sum"), server.metric("streamcell_batch_rows_count")

        dialect = "streamcell" if way.startswith("usual") else "resumable"
        return Target(way, server.target, (server.pid,), batches, {"dialect": dialect})

    return {way: target(way, process if way == "process" else none) for way in WAYS}


def wire_costs(sessions: Iterable[int], rounds: int, journals: Path | None = None, **more: Any) -> Results:
    """Load both servers with ping-pong of `sessions` sessions each, in `rounds` rounds; `more` is every load's."""
    cases = [Case(f"ping-pong {count}", {"sessions": count, "model": MODEL}, WAYS) for count in sessions]
    with tempfile.TemporaryDirectory() as models, tempfile.TemporaryDirectory(dir=journals) as folder:
        export(Path(models), MODEL)
        durable = ("--durability", "process", "--journal-dir", folder, "--max-sessions", "2000")
        with (
            Generator() as generator,
            ServerProcess(Path(models)) as none,
            ServerProcess(Path(models), *durable) as process,
        ):
            return measure(generator, cases, _targets(none, process), rounds=rounds, say=_say, **more)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def show(results: Results, sessions: Iterable[int]) -> None:
    """Print what was found as Markdown: medians by way, then the medians of each round's ratio of CPU time."""
    print("| sessions | way | CPU µs a step | mean batch | steps/s |")
    print("|---:|---|---:|---:|---:|")
    for count in sessions:
        for way in WAYS:
            found = [results.median(f"ping-pong {count}", way, figure) or 0.0 for figure in _FIGURES]
            print(f"| {count} | {way} | {found[0]:.1f} | {found[1]:.1f} | {found[2]:,.0f} |")
    for count in sessions:
        told = [f"{way} / {base} {_ratio(results, count, way, base):.3f}" for way, base in _RATIOS]
        print(f"{count} sessions: {', '.join(told)}")


def _ratio(results: Results, count: int, way: str, base: str) -> float:
    return results.ratio(f"ping-pong {count}", _FIGURES[0], base, server=way) or 0.0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", nargs="*", type=int, default=[1, 64, 256])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--measure-s", type=float, default=2.0, help="seconds of each load")
    parser.add_argument("--journal-dir", type=Path, help="where the journal is made; a temporary folder")
    asked = parser.parse_args()
    show(
        wire_costs(asked.sessions, asked.rounds, asked.journal_dir, measure_s=asked.measure_s), asked.sessions
    )


if __name__ == "__main__":
    main()
