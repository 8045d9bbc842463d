"""What each level of durability costs the server, and how much later replies come."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from streamcell.benchmarks.cases import Case, Target
from streamcell.benchmarks.load.spec import Load
from streamcell.benchmarks.load.usage import cpu_s
from streamcell.benchmarks.on_the_wire import measure
from streamcell.benchmarks.report.outcomes import Results
from streamcell.benchmarks.targets.processes import Generator
from streamcell.client.local_cluster import valkey
from streamcell.client.local_programs import LocalProgram, free_port
from streamcell.client.local_server import ServerProcess

LEVELS = ("none", "none again", "process", "store-async", "store-sync")
_FIGURES = (
    "server_cpu_us_per_step",
    "store_cpu_us_per_step",
    "p50_ms",
    "p99_ms",
    "mean_batch",
    "steps_per_s",
)


@contextmanager
def _targets(models: Path, model: str, generator: Generator) -> Iterator[dict[str, Target]]:
    """A server of each level, and one store for those that need one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(valkey(free_port(), folder / "valkey"))
        flags: dict[str, Sequence[str]] = {
            "none": (),
            "process": ("--durability", "process", "--journal-dir", str(folder / "journal")),
            **{
                level: ("--durability", level, "--store", f"valkey://{store.target}", "--replica", level)
                for level in LEVELS
                if level.startswith("store")
            },
        }
        servers = {
            level: stack.enter_context(ServerProcess(models, "--max-sessions", "2000", *given))
            for level, given in flags.items()
        }
        yield {
            level: _target(level, servers[level.removesuffix(" again")], store, generator) for level in LEVELS
        }


def _target(level: str, server: ServerProcess, store: LocalProgram, generator: Generator) -> Target:
    def run(load: Load) -> dict[str, Any]:
        before_s, rows, runs = cpu_s([store.process.pid]), *_batches(server)
        figures = generator.run(load)
        # The whole load's, with its openings and its end: few, beside its steps.
        stored_s = cpu_s([store.process.pid]) - before_s
        figures["store_cpu_us_per_step"] = stored_s / figures["total_messages"] * 1e6
        now_rows, now_runs = _batches(server)
        figures["mean_batch"] = (now_rows - rows) / max(now_runs - runs, 1)
        return figures

    return Target(level, server.target, (server.pid,), load={"dialect": "resumable"}, run=run)


def _batches(server: ServerProcess) -> tuple[float, float]:
    return server.metric("streamcell_batch_rows_sum"), server.metric("streamcell_batch_rows_count")


def costs(
    models: Path, model: str, sessions: Sequence[int], rounds: int, seconds: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Load a server of each level with ping-pong of so many sessions, in turn, every other round in reverse.

    Returns:
        A line for each number of sessions and each level: medians of the rounds, `over`: the median of the rounds'
        ratios of server CPU to "none", and `added_ms`: the median of the rounds' differences of p50 to "none"'s.
    """
    cases = [Case(str(count), {"sessions": count, "model": model}, LEVELS) for count in sessions]
    with Generator() as generator, _targets(models, model, generator) as targets:
        results = measure(generator, cases, targets, rounds=rounds, say=say, measure_s=seconds)
    return [_line(results, count, level) for count in sessions for level in LEVELS]


def _line(results: Results, sessions: int, level: str) -> dict[str, Any]:
    case = str(sessions)
    ratios = sorted(results.ratios(case, "server_cpu_us_per_step", "none", server=level))
    return {
        "sessions": sessions,
        "level": level,
        **{name: results.median(case, level, name) for name in _FIGURES},
        "over": results.ratio(case, "server_cpu_us_per_step", "none", server=level),
        "over_range": [ratios[0], ratios[-1]],
        "added_ms": results.difference(case, "p50_ms", "none", server=level),
    }
