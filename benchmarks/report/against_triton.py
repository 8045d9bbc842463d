"""What `benchmarks.triton` found, in words: the section of docs/benchmarks.md on the strongest peer."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcell.benchmarks.cases import OURS

from .report import goal_row, table

CPU = "server_cpu_us_per_step"
FIGURES = (CPU, "p50_ms", "p99_ms", "steps_per_s", "mean_batch", "client_cpu_us_per_step")
# Where perf_analyzer runs: in the servers' scheduling group, or in one of its own.
CLIENTS = ("same", "own")
_PEER = "triton"
_HEADING = "## The strongest peer"
_MANY, _LONG, _SHORT = (64, 256), 100, 20


@dataclass(frozen=True)
class Goal:
    """A bound on a figure's ratio to Triton's, in all lines that it is about."""

    what: str
    figure: str
    bound: float
    about: Callable[[Mapping[str, Any]], bool]

    def worst(self, report: Mapping[str, Any]) -> float | None:
        """The largest of the lines' ratios; None if no line was measured."""
        found = [ratio(line, self.figure) for line in report["lines"] if self.about(line)]
        return max(found, default=None)


def _many_long(line: Mapping[str, Any]) -> bool:
    return line["steps"] == _LONG and line["sequences"] in _MANY


def _long(line: Mapping[str, Any]) -> bool:
    return bool(line["steps"] == _LONG)


def _many_short(line: Mapping[str, Any]) -> bool:
    return line["steps"] == _SHORT and line["sequences"] in _MANY


GOALS = (
    Goal(
        "64 and 256 sequences of 100 steps: server CPU a step, over Triton's, the worst", CPU, 0.7, _many_long
    ),
    Goal("1 to 256 sequences of 100 steps: p50, over Triton's, the worst", "p50_ms", 1.0, _long),
    Goal("1 to 256 sequences of 100 steps: p99, over Triton's, the worst", "p99_ms", 1.0, _long),
    Goal(
        "64 and 256 sequences of 20 steps: server CPU a step, over Triton's, the worst", CPU, 1.0, _many_short
    ),
)


def ratio(line: Mapping[str, Any], figure: str) -> float:
    """This server's figure over Triton's: the median of the rounds."""
    rounds: list[float] = line["ratios"][figure]
    return statistics.median(rounds)


def missed(report: Mapping[str, Any]) -> list[Goal]:
    """The goals that were measured and not met."""
    return [goal for goal in GOALS if (value := goal.worst(report)) is not None and value > goal.bound]


def write_results(report: Mapping[str, Any], path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def read_results(path: Path) -> dict[str, Any] | None:
    """The report that was written last; None if there is none."""
    if not path.is_file():
        return None
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def with_section(page: str, report: Mapping[str, Any] | None) -> str:
    """`page`, whose last section this is, with this section from `report`."""
    return page.partition(_HEADING)[0] + section(report)


_UNMEASURED = """\

Triton with its ONNX Runtime back end, in C++, is not among the rows above: pytriton is Triton with a Python back end.
`make bench PEER=triton` measures it if it is given one.
"""

_BUSY = """
Other programs kept the cores busy (load average {load} before it began), which changes all figures of this section:
they say less than those of a quiet machine.
"""

_TEXT = """\

{server} with its ONNX Runtime back end, in C++ (pytriton, above, is Triton with a Python back end), and this server
under the same load, Triton's own client perf_analyzer. Measured on {date}.

{machine}
{busy}
{goals}

{groups}

{lines}

- **In turn**: in each of {rounds} rounds perf_analyzer drives one server and then the other, every other round in the
  reverse order, for three windows of {window_s:g} s each. A figure is the median of the rounds. A ratio is this
  server's figure over Triton's: the median of the rounds' ratios, with the lowest and the highest of them.
- **Server CPU a step** is the CPU time of the server's processes during perf_analyzer's run, divided by the requests
  that the server's own statistics count in that time. Opening and ending the sequences is a part of it.
- **The same work**: an LSTM 2×128 with 32 inputs and 8 outputs, the same weights in the same version of ONNX Runtime on
  one thread, batches of 256 at most. Triton keeps one implicit state with the strategy `oldest` and runs the layers on
  it without a copy; its process has {libraries}.

`make bench PEER=triton BENCH="--triton-server FILE --triton-backends FOLDER --perf-analyzer FILE"` repeats it;
`python -m streamcell.benchmarks.triton` with the same options measures this section alone. Triton's image has the first
two, that of its SDK perf_analyzer. The server and perf_analyzer may be scripts that set their libraries and end in
`exec`.
"""


_WHY = """
Why goals are missed: both servers spend most of a step in the kernel's sockets, the cores of gRPC and the model. Only
this server also spends time in Python's interpreter, a third of its samples. Without the interpreter it would just
reach the goal on CPU. Each session's message and reply need some twenty calls of Python, compiled or not. Each reply
needs one operation of grpcio's core, which has no operation for several calls.
"""


def section(report: Mapping[str, Any] | None) -> str:
    """The section; without a report it says how to get one."""
    if report is None:
        return _HEADING + "\n" + _UNMEASURED
    about = {**report["hardware"], **report["versions"]}
    text = _HEADING + "\n" + _TEXT.format(
        server=report["versions"][_PEER].replace("triton", "Triton", 1),
        date=report["date"],
        machine="; ".join(f"{name} {value}" for name, value in about.items()) + ".",
        busy=_busy(report["hardware"]),
        goals=table(("goal", "bound", "measured", ""), goal_rows(report)),
        groups=grouping(report["groups"]),
        lines=_lines(report["lines"]),
        libraries=" and ".join(f"`{name}`" for name in report["triton_libraries"]) or "the C library's allocator",
        **report["settings"],
    )  # fmt: skip
    if missed(report):
        text += _WHY
    if report["samples_by_library"]:
        shares = ", ".join(f"{name} {share:.0f} %" for name, share in report["samples_by_library"].items())
        text += f"\nSamples of this server's process with 64 sequences of 100 steps, by library (perf): {shares}.\n"
    return text


def _busy(hardware: Mapping[str, str]) -> str:
    """What to say if the machine had other work for more than half of its cores."""
    load = hardware["load average before"]
    return _BUSY.format(load=load) if float(load) > int(hardware["cores"]) / 2 else ""


def goal_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(goal, bound, measured, "met" or "missed" or "not measured"), as text."""
    return [goal_row(goal.what, goal.worst(report), goal.bound) for goal in GOALS]


def grouping(groups: Mapping[str, str]) -> str:
    """How the client and the servers were grouped; `groups` has the group of each server and of each client."""
    if not all(groups.values()):
        return (
            "This kernel does not group processes by login session, so *same* and *own* are one arrangement: all "
            "processes compete for the cores as equals."
        )
    servers = sorted({groups[name] for name in (OURS, _PEER)})
    text = "The kernel shares the cores out to login sessions first (autogroup). "
    text += f"The servers were in {' and '.join(servers)}, perf_analyzer "
    return text + " or ".join(
        f"in {groups[client]} (*{client}*, {'with them' if groups[client] in servers else 'alone'})"
        for client in CLIENTS
        if client in groups
    ) + "."  # fmt: skip


def _lines(lines: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "sequences × steps, client", "CPU µs a step", "Triton's", "ratio", "p50 ms", "Triton's", "ratio", "p99 ms",
        "Triton's", "ratio", "steps/s, ratio", "mean batch", "Triton's",
    )  # fmt: skip
    rows = []
    for line in lines:
        cells = [f"{line['sequences']} × {line['steps']}, {line['client']}"]
        for figure, digits in ((CPU, 1), ("p50_ms", 2), ("p99_ms", 2)):
            cells += [f"{line[name][figure]:.{digits}f}" for name in (OURS, _PEER)]
            cells.append(_spread(line, figure))
        cells += [
            _spread(line, "steps_per_s"),
            *(f"{line[name]['mean_batch']:.1f}" for name in (OURS, _PEER)),
        ]
        rows.append(cells)
    return table(head, rows)


def _spread(line: Mapping[str, Any], figure: str) -> str:
    each = line["ratios"][figure]
    return f"**{ratio(line, figure):.2f}** ({min(each):.2f}–{max(each):.2f})"
