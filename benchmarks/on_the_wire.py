"""Puts loads on servers, interleaved: every case runs on each server in turn, in several rounds; the median counts.

`python -m streamcell.benchmarks.on_the_wire --target HOST:PORT --model NAME` drives a running server.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streamcell.benchmarks.load.spec import Load, LoadError
from streamcell.benchmarks.report.outcomes import Results
from streamcell.benchmarks.targets.processes import Generator

from .cases import Case, Target, load_for, targets_of


def measure(
    generator: Generator,
    cases: Iterable[Case],
    targets: Mapping[str, Target],
    *,
    peers: Iterable[str] = (),
    rounds: int = 3,
    say: Callable[[str], None] = lambda text: None,
    **more: Any,
) -> Results:
    """Run every case on its targets in `rounds` rounds; every other round has the reverse order.

    Args:
        generator: runs the loads.
        cases: what to run.
        targets: by name; a case leaves out those that are not here.
        peers: names of targets that are other servers.
        rounds: how often.
        say: called with each figure when it is measured.
        more: what every load has, such as `measure_s`.

    Raises:
        LoadError: a load failed.
    """
    results = Results()
    todo = list(cases)
    for turn in range(rounds):
        for case in todo:
            each = targets_of(case, targets, peers)
            for target in each if turn % 2 == 0 else reversed(each):
                figures = _figures(generator, target, load_for(case, target, **more))
                results.add(case.name, target.name, figures)
                say(f"{turn + 1}/{rounds}  {case.name:<14} {target.name:<15} {_line(figures)}")
    return results


def _figures(generator: Generator, target: Target, load: Load) -> dict[str, Any]:
    if target.run is not None:
        return target.run(load)
    before = target.batches() if target.batches else None
    figures = generator.run(load)
    if before is not None and target.batches is not None:
        rows, runs = (now - then for now, then in zip(target.batches(), before, strict=True))
        if runs:
            figures["mean_batch"] = rows / runs
    return figures


def _line(figures: Mapping[str, float]) -> str:
    parts = [f"{figures['steps_per_s']:>10,.0f} steps/s"]
    if "p50_ms" in figures:
        parts.append(f"p50 {figures['p50_ms']:.2f} ms  p99 {figures['p99_ms']:.2f} ms")
    if "server_cpu_us_per_step" in figures:
        parts.append(f"{figures['server_cpu_us_per_step']:.1f} µs CPU a step")
    return "  ".join(parts)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a load by hand."""
    parser.add_argument("--target", required=True, help="HOST:PORT of a running server")
    parser.add_argument("--model", default="lstm")
    parser.add_argument(
        "--protocol", choices=("streamcell", "predict", "frames", "oip"), default="streamcell"
    )
    parser.add_argument("--input", type=int, default=32, help="floats a step of the model's input")
    parser.add_argument("--output", type=int, default=8, help="floats a step of its output")
    parser.add_argument("--sessions", type=int, nargs="+", default=[64])
    parser.add_argument(
        "--outstanding", type=int, default=1, help="messages on their way at a time, a stream"
    )
    parser.add_argument("--steps", type=int, default=1, help="timesteps a message")
    parser.add_argument("--rate", type=float, default=0.0, help="messages a second in all, on schedule")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument(
        "--pids", type=int, nargs="*", default=(), help="the server's processes, if they are here"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    arguments(parser)
    asked = parser.parse_args()
    about: dict[str, Any] = {}
    if asked.protocol == "oip":
        from streamcell.benchmarks.load.oip import border

        about = border(asked.target, asked.model)
    with Generator() as generator:
        for sessions in asked.sessions:
            load = Load(
                asked.target, asked.protocol, asked.model, 4 * asked.input, 4 * asked.output, sessions,
                asked.outstanding, asked.steps, asked.rate, connections=asked.connections,
                measure_s=asked.seconds, pids=tuple(asked.pids), **about,
            )  # fmt: skip
            try:
                figures = generator.run(load)
            except LoadError as error:
                sys.exit(str(error))
            print(json.dumps({"sessions": sessions, **figures}))


if __name__ == "__main__":
    main()
