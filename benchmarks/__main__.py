"""`make bench`: measures everything, compares it with the goals and writes the report."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from streamcell.benchmarks.report.against_triton import read_results, section, write_results
from streamcell.benchmarks.report.goals import Found
from streamcell.benchmarks.report.page import page
from streamcell.benchmarks.report.report import Report, goal_rows, missed, write_json
from streamcell.benchmarks.report.spending import by_library, split
from streamcell.benchmarks.targets.peers import NAMES, Peer, chosen, triton_options
from streamcell.benchmarks.targets.processes import Generator
from streamcell.benchmarks.targets.servers import servers
from streamcell.service.repository.model_file import open_model

from . import at_rest, engine, machine, specimens, tenants, triton
from .cases import OIP, OURS, Case, Target, cases, load_for
from .load.perf_analyzer import PerfAnalyzer
from .on_the_wire import measure
from .targets.triton import NAME as TRITON

_ROOT = Path(__file__).parents[1]
_SPLIT = ("ping-pong 1", "ping-pong 64", "ping-pong 256", "ping-pong 1024", "pipelined 64")


def run(asked: argparse.Namespace, console: Console) -> Report:
    """Measure with the options `asked`."""
    peers: dict[str, Peer] = asked.peers
    rounds, seconds = (1, 0.4) if asked.quick else (asked.rounds, asked.seconds)
    hardware = machine.hardware()
    todo = [case for case in cases() if asked.only in case.name]

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        for kind in ("lstm", "mlp"):
            specimens.export(models, kind)
        with servers(models, peers) as targets, Generator() as generator:
            results = measure(
                generator, todo, targets, peers=peers, rounds=rounds, say=say, measure_s=seconds
            )
            idle = _at_rest(models, asked.quick, say) if asked.rest else {}
            flood = (1, 16, 0.5) if asked.quick else (3, 256, 3.0)
            found = Found(results, idle, tenants.measure(models, *flood) if asked.tenants else {})
            profiles = _profiles(generator, targets[OURS], todo, found)
            against = _against_triton(asked, targets, rounds, seconds, say)
        lines = engine.measure(
            ["lstm", "gru", "rnn", "mlp"], [128], [(1, 1), (64, 1), (256, 1), (64, 16)],
            seconds=0.1 if asked.quick else 0.4,
        ) if asked.engine else []  # fmt: skip
    return Report(
        command=asked.command,
        date=machine.today(),
        hardware=hardware,
        versions=machine.versions(),
        settings={"rounds": rounds, "seconds": seconds, "peers": list(peers), "quick": asked.quick},
        found=found,
        engine=lines,
        splits={case: parts for case in _SPLIT if (parts := split(results, case))},
        profiles=profiles,
        against_triton=against,
    )


def _at_rest(models: Path, quick: bool, say: Any) -> dict[str, Any]:
    sessions = 1_000 if quick else 10_000
    found = at_rest.measure(models, sessions=sessions, rounds=1 if quick else 3, say=say)
    signature = open_model(models / "lstm.onnx", "lstm").signature
    found["card_bytes"] = sum(state.session_bytes for state in signature.states)
    found["state_over_card"] = found["state_bytes_each"] / found["card_bytes"]
    found["ready_s"] = at_rest.ready_s(models, starts=1 if quick else 3)
    return found


def _against_triton(
    asked: argparse.Namespace,
    targets: Mapping[str, Target],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """The comparison on perf_analyzer; None if it or Triton is not given."""
    if asked.perf_analyzer is None or TRITON not in targets or OIP not in targets:
        return None
    settings = triton.Settings(rounds=rounds, window_s=seconds)
    return triton.compare(targets[OIP], targets[TRITON], PerfAnalyzer(asked.perf_analyzer), settings, say)


def _profiles(
    generator: Generator, target: Target, todo: list[Case], found: Found
) -> dict[str, list[tuple[str, float]]]:
    """Profiles of the cases whose goals are missed."""
    by_name = {case.name: case for case in todo}
    names = dict.fromkeys(goal.case for goal in missed(found) if goal.case in by_name)

    def load(name: str) -> None:
        generator.run(load_for(by_name[name], target, measure_s=1.5))

    return {name: by_library(target.pids, partial(load, name)) for name in names}


def show(report: Report, console: Console) -> None:
    """Print the table of goals."""
    table = Table("goal", "bound", "measured", "")
    for *cells, verdict in goal_rows(report.found):
        colour = {"met": "green", "missed": "red"}.get(verdict, "yellow")
        table.add_row(*cells, f"[{colour}]{verdict}[/]")
    console.print(table)
    for case, parts in report.splits.items():
        text = ", ".join(f"{name} {us:.1f}" for name, us in parts.items())
        console.print(f"{case}: µs of server CPU a step: {text}", highlight=False)
    for case, shares in report.profiles.items():
        text = ", ".join(f"{name} {share:.0f} %" for name, share in shares) or "perf is not there, or may not"
        console.print(f"{case}: samples by library: {text}", highlight=False, markup=False)
    if report.against_triton is not None:
        console.print(section(report.against_triton), highlight=False, markup=False)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m streamcell.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, to test the benchmark itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of each load in each round")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose names contain this")
    parser.add_argument("--peer", action="append", default=[], choices=NAMES, help="also measure this server")
    triton_options(parser)
    parser.add_argument(
        "--no-rest", dest="rest", action="store_false", help="skip the 10,000 sessions at rest"
    )
    parser.add_argument(
        "--no-tenants", dest="tenants", action="store_false", help="skip one tenant's flood beside another"
    )
    parser.add_argument("--no-engine", dest="engine", action="store_false", help="skip the engine's table")
    parser.add_argument("--json", type=Path, default=_ROOT / "benchmarks/results/latest.json")
    parser.add_argument("--page", type=Path, default=_ROOT / "docs/benchmarks.md")
    parser.add_argument("--dry", action="store_true", help="print only, write nothing")
    asked = parser.parse_args(arguments)
    asked.peers = chosen(parser, asked)
    asked.command = " ".join(
        ["make bench" if not arguments else "python -m streamcell.benchmarks", *arguments]
    )
    return asked


def main() -> None:
    """Measure, print, write. The exit code is 0 even if goals are missed."""
    asked = parse(sys.argv[1:])
    console = Console(width=max(110, Console().width))
    report = run(asked, console)
    show(report, console)
    if not asked.dry:
        write_json(report, asked.json)
        if report.against_triton is not None:
            write_results(report.against_triton, triton.RESULTS)
        asked.page.write_text(page(report, read_results(triton.RESULTS)))
        console.print(f"written: {asked.page}, {asked.json}")


if __name__ == "__main__":
    main()
