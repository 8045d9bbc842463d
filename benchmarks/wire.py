"""Loads on servers, interleaved: every case runs on each server in turn, round after round, and medians count.

`python -m streamcell.benchmarks.wire --target HOST:PORT --model NAME` drives a running server; `make bench` runs
`CASES` against a StreamCell server and the yardsticks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .load import Load, LoadError
from .processes import Generator

FIGURES = (
    "steps_per_s", "p50_ms", "p99_ms", "p999_ms", "server_cpu_us_per_step", "server_cores", "server_rss_mib",
    "client_cpu_us_per_step", "mean_batch",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A server: where it is, its processes, and how to read (rows, runs) of its batches so far."""

    name: str
    address: str
    pids: tuple[int, ...] = ()
    batches: Callable[[], tuple[float, float]] | None = None


@dataclass(frozen=True)
class Case:
    """One line of the table: what differs from a `Load`'s defaults, and the servers it runs on."""

    name: str
    load: Mapping[str, Any]
    servers: tuple[str, ...] = ("streamcell", "aio_echo", "lane_echo")


def cases(sessions: Iterable[int] = (1, 8, 64, 256, 1024), *, frames: bool) -> list[Case]:
    """What `make bench` measures on the wire."""
    alone = ("streamcell",)
    found = [Case(f"ping-pong {n}", {"sessions": n}) for n in sessions]
    found += [Case(f"pipelined16 {n}", {"sessions": n, "outstanding": 16}) for n in (1, 8, 64)]
    found += [Case(f"chunks16 {n}", {"sessions": n, "steps": 16}) for n in (8, 64)]
    found += [Case(f"predict {n}", {"sessions": n, "dialect": "predict", "model": "mlp"}) for n in (1, 64)]
    found += [Case("open-loop 64", {"sessions": 64, "rate": 2000.0})]
    if frames:
        found += [Case(f"frames {n}", {"sessions": n, "dialect": "frames"}, alone) for n in (64, 1024)]
    return found


def load_for(case: Case, target: Target, **more: Any) -> Load:
    """The load of `case` as `target` takes it."""
    load = replace(Load(target.address, pids=target.pids), **{**case.load, **more})
    if target.name.endswith("_echo"):
        load = replace(load, dialect="echo-unary" if load.dialect == "predict" else "echo")
    return load


@dataclass
class Results:
    """Figures by case and server, one entry a round."""

    rounds: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)

    def add(self, case: str, server: str, figures: dict[str, float]) -> None:
        """Add one round's."""
        self.rounds.setdefault((case, server), []).append(figures)

    def median(self, case: str, server: str, figure: str) -> float | None:
        """The median of the rounds; None where it was not measured."""
        values = [r[figure] for r in self.rounds.get((case, server), ()) if figure in r]
        return statistics.median(values) if values else None

    def ratio(self, case: str, figure: str, to: str, *, server: str = "streamcell") -> float | None:
        """`server`'s figure over that of `to`, the median of the ratios of each round."""
        pairs = zip(self.rounds.get((case, server), ()), self.rounds.get((case, to), ()), strict=False)
        values = [a[figure] / b[figure] for a, b in pairs if figure in a and b.get(figure)]
        return statistics.median(values) if values else None

    def across(self, figure: str, case: str, base: str, *, server: str = "streamcell") -> float | None:
        """`case`'s figure over that of the case `base`, on the same server, round by round."""
        pairs = zip(self.rounds.get((case, server), ()), self.rounds.get((base, server), ()), strict=False)
        values = [a[figure] / b[figure] for a, b in pairs if b.get(figure)]
        return statistics.median(values) if values else None

    def within(self, case: str, over: str, under: str, *, server: str = "streamcell") -> float | None:
        """One figure over another of the same round, such as p99 over p50."""
        values = [r[over] / r[under] for r in self.rounds.get((case, server), ()) if r.get(under)]
        return statistics.median(values) if values else None


def measure(
    generator: Generator,
    cases: Iterable[Case],
    targets: Mapping[str, Target],
    *,
    rounds: int = 3,
    say: Callable[[str], None] = lambda text: None,
    **more: Any,
) -> Results:
    """Run every case on its servers, `rounds` times over, the order reversed every other time.

    Raises:
        LoadError: a load failed.
    """
    results = Results()
    todo = list(cases)
    for turn in range(rounds):
        for case in todo:
            servers = [targets[name] for name in case.servers if name in targets]
            for target in servers if turn % 2 == 0 else reversed(servers):
                before = target.batches() if target.batches else None
                figures = generator.run(load_for(case, target, **more))
                if before is not None and target.batches is not None:
                    rows, runs = (now - then for now, then in zip(target.batches(), before, strict=True))
                    if runs:
                        figures["mean_batch"] = rows / runs
                results.add(case.name, target.name, figures)
                say(
                    f"{turn + 1}/{rounds}  {case.name:<16} {target.name:<11} {figures['steps_per_s']:>10,.0f} steps/s"
                    f"  p50 {figures['p50_ms']:.2f} ms  p99 {figures['p99_ms']:.2f} ms"
                    f"  {figures.get('server_cpu_us_per_step', float('nan')):.1f} µs CPU a step"
                )
    return results


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
        from .oip import border

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
