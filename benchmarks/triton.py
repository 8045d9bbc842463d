"""This server against Triton with its ONNX Runtime back end, on Triton's own client.

`python -m streamcell.benchmarks.triton --triton-server … --triton-backends … --perf-analyzer …` measures it alone;
`make bench PEER=triton`, with the same options in BENCH, beside everything else.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamcell.client.local_server import ServerProcess

from . import machine, specimens
from .cases import OURS, Target
from .load.oip import server_version
from .load.perf_analyzer import PerfAnalyzer
from .load.spec import Load
from .load.usage import libraries, scheduling_group
from .report.against_triton import CLIENTS, CPU, FIGURES, missed, section, with_section, write_results
from .report.outcomes import Results
from .report.report import rounded
from .report.spending import by_library
from .targets.peers import triton_options
from .targets.servers import ours, ours_by_oip
from .targets.triton import NAME, Triton
from .targets.triton_process import MODEL, PeerError

SEQUENCES, STEPS = (1, 8, 64, 256), (100, 20)
_ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = _ROOT / "benchmarks/results/triton.json", _ROOT / "docs/benchmarks.md"
# What is profiled if a goal is missed.
_PROFILED_SEQUENCES, _PROFILED_STEPS = 64, 100
_TOLD_OF_TRITON = re.compile(r"malloc|libonnxruntime\.so")


@dataclass(frozen=True)
class Settings:
    """How to compare.

    Attributes:
        sequences: numbers of sequences at a time.
        steps: lengths of sequences.
        rounds: how often each server has its turn.
        window_s: seconds of each of the three windows of a turn.
    """

    sequences: Sequence[int] = SEQUENCES
    steps: Sequence[int] = STEPS
    rounds: int = 5
    window_s: float = 1.0


@dataclass(frozen=True)
class _Case:
    """A line of the report; `client` is one of `CLIENTS`."""

    sequences: int
    steps: int
    client: str

    @property
    def name(self) -> str:
        return f"{self.sequences} × {self.steps}, {self.client}"


def compare(
    ours: Target, peer: Target, analyzer: PerfAnalyzer, settings: Settings, say: Callable[[str], None]
) -> dict[str, Any]:
    """Let perf_analyzer drive the two servers in turn, every other round in the reverse order.

    Args:
        ours, peer: the servers; both speak the Open Inference Protocol.
        analyzer: perf_analyzer.
        settings: how often and how long.
        say: called with each figure when it is measured.

    Returns:
        The report as JSON values: a line for each number and length of sequences, with perf_analyzer in the servers'
        scheduling group and in one of its own.

    Raises:
        LoadError: perf_analyzer failed.
    """
    hardware = machine.hardware()
    results = Results()
    groups = {name: scheduling_group(target.pids[0]) for name, target in ((OURS, ours), (NAME, peer))}
    cases = [
        _Case(count, steps, client)
        for steps in settings.steps
        for client in CLIENTS
        for count in settings.sequences
    ]
    for turn in range(settings.rounds):
        for case in cases:
            both = [(OURS, ours), (NAME, peer)]
            for name, target in both if turn % 2 == 0 else reversed(both):
                load = _load(target, case.sequences, settings)
                figures = analyzer.run(load, steps=case.steps, apart=case.client == "own")
                groups[case.client] = figures.pop("client_group")
                results.add(case.name, name, figures)
            say(f"{turn + 1}/{settings.rounds}  {_said(case, results)}")
    report = {
        "date": machine.today(),
        "hardware": hardware,
        "versions": {
            **machine.versions(),
            NAME: server_version(peer.address),
            "perf_analyzer": analyzer.version(),
        },
        "triton_libraries": [name for name in libraries(peer.pids[0]) if _TOLD_OF_TRITON.search(name)],
        "settings": {"rounds": settings.rounds, "window_s": settings.window_s},
        "groups": groups,
        "lines": [_line(case, results) for case in cases],
        "samples_by_library": {},
    }
    if missed(report):
        load = _load(ours, _PROFILED_SEQUENCES, settings)
        profile = by_library(ours.pids, lambda: analyzer.run(load, steps=_PROFILED_STEPS, apart=False))
        report["samples_by_library"] = dict(profile)
    whole: dict[str, Any] = rounded(report)
    return whole


def _load(target: Target, sequences: int, settings: Settings) -> Load:
    return Load(
        target.address, sessions=sequences, measure_s=settings.window_s, pids=target.pids, **target.load
    )


def _line(case: _Case, results: Results) -> dict[str, Any]:
    return {
        **asdict(case),
        **{
            name: {figure: results.median(case.name, name, figure) for figure in FIGURES}
            for name in (OURS, NAME)
        },
        "ratios": {figure: results.ratios(case.name, figure, NAME) for figure in FIGURES},
    }


def _said(case: _Case, results: Results) -> str:
    """The last round's figures."""
    cpu, p50, p99, steps, *_ = (results.ratios(case.name, figure, NAME)[-1] for figure in FIGURES)
    ours, peer = (results.rounds[case.name, name][-1][CPU] for name in (OURS, NAME))
    return (
        f"{case.name:<14} CPU {ours:.1f} / {peer:.1f} µs a step = {cpu:.2f}  p50 {p50:.2f}  p99 {p99:.2f}  "
        f"steps/s {steps:.2f}"
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m streamcell.benchmarks.triton", description=__doc__)
    triton_options(parser, required=True)
    parser.add_argument("--sequences", type=int, nargs="+", default=list(SEQUENCES), metavar="N")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=list(STEPS), metavar="N", help="of a sequence"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each of the three windows of a turn")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="whose section on the peer is written")
    parser.add_argument("--dry", action="store_true", help="print only, write nothing")
    return parser.parse_args(arguments)


def measure(asked: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Start both servers and compare them with the options `asked`."""
    settings = Settings(asked.sequences, asked.steps, asked.rounds, asked.seconds)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        models = Path(folder)
        specimens.export(models, MODEL)
        server = stack.enter_context(ServerProcess(models, "--max-sessions", "2000"))
        target = ours_by_oip(ours(server), MODEL)
        if target is None:
            raise PeerError("this server does not answer the Open Inference Protocol's load")
        peer = stack.enter_context(Triton(asked.triton_server, asked.triton_backends)(models))
        return compare(target, peer, PerfAnalyzer(asked.perf_analyzer), settings, say)


def main() -> None:
    """Measure, print and write the report and the page's section."""
    asked = parse(sys.argv[1:])
    report = measure(asked, print)
    print(section(report))
    if not asked.dry:
        write_results(report, asked.json)
        written = [asked.json]
        if asked.page.is_file():  # an installed package has no pages
            asked.page.write_text(with_section(asked.page.read_text(), report))
            written.append(asked.page)
        print("written:", *written)


if __name__ == "__main__":
    main()
