"""Are several processes faster? `python -m streamcell.benchmarks.spread` compares three ways to use the cores.

- one process: the default;
- N front ends: `--frontends N`, processes that answer calls before the one that runs the models;
- N servers: independent servers on one port (SO_REUSEPORT), each with its own engine and its own sessions.

The same sessions, spread over many connections, load each in turn, round after round. What counts is the ratio to one
process in the same round. By default N is 2, 4 and 8, as far as the machine has cores, and half of the cores generate
the load.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from streamcell.client.local_server import ServerProcess
from streamcell.service.processes.ports import reserve

from . import machine, specimens
from .cases import Target
from .load.several import run_together
from .load.spec import Load
from .load.usage import family
from .report.outcomes import Results
from .report.report import rounded, table
from .targets.processes import Generator
from .targets.servers import ours

_ROOT = Path(__file__).parents[1]
ONE = "one process"
SESSIONS = (64, 256, 1024)
FIGURES = ("steps_per_s", "p50_ms", "p99_ms", "server_cpu_us_per_step")
_CONNECTIONS_A_CORE = 8
_ROOM = ("--max-sessions", "5000")  # for all sessions: the kernel may give all of them to one server


@contextmanager
def servers(models: Path, counts: Sequence[int]) -> Iterator[list[Target]]:
    """Start one process, and for each N of `counts` N front ends and N servers; yield all of them when they serve."""
    with ExitStack() as stack:

        def start(*flags: str, **how: Any) -> ServerProcess:
            return stack.enter_context(ServerProcess(models, *_ROOM, *flags, **how))

        found = [ours(start(), ONE)]
        for count in counts:
            found.append(ours(start("--frontends", str(count)), f"{count} front ends"))
            held = stack.enter_context(reserve("127.0.0.1", 0))
            module = ("streamcell.benchmarks.targets.shared_port", str(held.getsockname()[1]))
            several = [start(module=module) for _ in range(count)]
            pids = tuple(pid for server in several for pid in family(server.pid))
            found.append(Target(f"{count} servers", several[0].target, pids, _batches(several)))
        yield found


def _batches(several: Sequence[ServerProcess]) -> Callable[[], tuple[float, float]]:
    def batches() -> tuple[float, float]:
        rows, runs = (
            sum(server.metric(f"streamcell_batch_rows_{what}") for server in several)
            for what in ("sum", "count")
        )
        return rows, runs

    return batches


def measure(
    targets: Sequence[Target],
    generators: Sequence[Generator],
    *,
    sessions: Sequence[int],
    rounds: int,
    say: Callable[[str], None],
    **load: Any,
) -> Results:
    """Put each number of `sessions` on each target in turn, `rounds` times over, every other round in reverse.

    `load` is what every `Load` has. Raises LoadError if one fails.
    """
    results = Results()
    for turn in range(rounds):
        for count in sessions:
            for target in targets if turn % 2 == 0 else reversed(targets):
                assert target.batches is not None
                before = target.batches()
                figures = run_together(
                    generators, Load(target.address, sessions=count, pids=target.pids, **load)
                )
                rows, runs = (now - then for now, then in zip(target.batches(), before, strict=True))
                figures["mean_batch"] = rows / max(runs, 1)
                results.add(str(count), target.name, figures)
                say(
                    f"{turn + 1}/{rounds}  {count:>5} sessions  {target.name:<13} "
                    f"{figures['steps_per_s']:>9,.0f} steps/s  p99 {figures['p99_ms']:.2f} ms"
                )
    return results


def lines(results: Results) -> list[dict[str, Any]]:
    """A line for each number of sessions and each way: medians of the rounds, and their ratios to one process."""
    return [
        {
            "sessions": int(case),
            "server": server,
            **{name: results.median(case, server, name) for name in (*FIGURES, "mean_batch")},
            "over_one_process": {name: results.ratio(case, name, ONE, server=server) for name in FIGURES},
        }
        for case, server in results
    ]


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """The lines as a table, in which each figure is followed by its ratio to one process."""
    head = ("sessions", "server", "steps/s", "p50 ms", "p99 ms", "CPU µs a step", "mean batch")
    rows = []
    for line in found:
        cells = [str(line["sessions"]), line["server"]]
        for name in FIGURES:
            digits = 0 if name == "steps_per_s" else 1 if name.startswith("server") else 2
            ratio = "" if line["server"] == ONE else f" (×{line['over_one_process'][name]:.2f})"
            cells.append(f"{line[name]:,.{digits}f}{ratio}")
        rows.append([*cells, f"{line['mean_batch']:.1f}"])
    return table(head, rows)


def parse(arguments: Sequence[str], cores: int) -> argparse.Namespace:
    """The command line; what is not given is chosen for `cores`."""
    parser = argparse.ArgumentParser(
        prog="python -m streamcell.benchmarks.spread",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    counts = [count for count in (2, 4, 8) if count <= max(cores, 2)]
    parser.add_argument(
        "--quick", action="store_true", help="one short round with few sessions: to see that it runs"
    )
    parser.add_argument("--counts", type=int, nargs="+", default=counts, metavar="N", help=f"[{counts}]")
    parser.add_argument("--sessions", type=int, nargs="+", default=list(SESSIONS), metavar="N")
    parser.add_argument(
        "--generators", type=int, default=max(1, cores // 2), help="processes that make the load"
    )
    parser.add_argument("--connections", type=int, default=_CONNECTIONS_A_CORE * max(cores, 2))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load in each round")
    parser.add_argument("--json", type=Path, default=_ROOT / "benchmarks/results/spread.json")
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.rounds, asked.seconds, asked.sessions, asked.counts = 1, 0.3, [8], asked.counts[:1]
    return asked


def run(asked: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure with the options `asked`; returns the report as JSON values."""
    hardware = machine.hardware()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        specimens.export(Path(folder), "lstm")
        targets = stack.enter_context(servers(Path(folder), asked.counts))
        generators = [stack.enter_context(Generator()) for _ in range(asked.generators)]
        results = measure(
            targets,
            generators,
            sessions=asked.sessions,
            rounds=asked.rounds,
            say=say,
            connections=asked.connections,
            measure_s=asked.seconds,
        )
    settings = ("rounds", "seconds", "connections", "generators", "quick")
    return {
        "date": machine.today(),
        "hardware": hardware,
        "versions": machine.versions(),
        "settings": {name: getattr(asked, name) for name in settings},
        "lines": rounded(lines(results)),
    }


def main() -> None:
    """Measure, write the JSON and print the table."""
    asked = parse(sys.argv[1:], len(os.sched_getaffinity(0)))
    report = run(asked, lambda text: print(text, file=sys.stderr))
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(report, indent=1) + "\n")
    print(markdown(report["lines"]))
    print(f"written: {asked.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
