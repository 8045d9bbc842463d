"""The results of `make bench`: latest.json for machines, docs/benchmarks.md and a table on the terminal for people.

Both are written from figures alone: no sentence says how they came out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcell.benchmarks.cases import AIO, ENGINE, LANE

from .goals import GOALS, Found, Goal
from .outcomes import Results

FIGURES = (
    "steps_per_s", "p50_ms", "p99_ms", "p999_ms", "server_cpu_us_per_step", "server_cores", "server_rss_mib",
    "client_cpu_us_per_step", "mean_batch",
)  # fmt: skip
# The ratios: name → (figure, the target in the denominator).
RATIOS = {
    "cpu_over_aio_echo": ("server_cpu_us_per_step", AIO),
    "cpu_over_lane_echo": ("server_cpu_us_per_step", LANE),
    "p50_over_aio_echo": ("p50_ms", AIO),
    "p50_over_lane_echo": ("p50_ms", LANE),
    "steps_over_aio_echo": ("steps_per_s", AIO),
    "steps_over_engine": ("steps_per_s", ENGINE),
}


@dataclass(frozen=True)
class Report:
    """All results of a run of `make bench`.

    Attributes:
        command: what measured it.
        date: when.
        hardware, versions, settings: on what, with what, and how.
        found: the loads' results, and what costs at rest.
        engine: lines of `engine.measure`.
        splits: by case, `spending.split`.
        profiles: by case, `spending.by_library`.
        against_triton: what `benchmarks.triton.compare` returns, if it ran; it has a file of its own.
    """

    command: str
    date: str
    hardware: Mapping[str, str]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    found: Found
    engine: list[dict[str, Any]] = field(default_factory=list)
    splits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    profiles: Mapping[str, list[tuple[str, float]]] = field(default_factory=dict)
    against_triton: Mapping[str, Any] | None = None


def case_lines(results: Results) -> list[dict[str, Any]]:
    """A line for each case and target: the medians of the rounds, and the ratios, round by round, of their median."""
    lines = []
    for case, server in results:
        line: dict[str, Any] = {"case": case, "server": server}
        line |= {name: value for name in FIGURES if (value := results.median(case, server, name)) is not None}
        line["ratios"] = {
            name: value
            for name, (figure, to) in RATIOS.items()
            if to != server and (value := results.ratio(case, figure, to, server=server)) is not None
        }
        lines.append(line)
    return lines


def goal_lines(found: Found) -> list[dict[str, Any]]:
    """A line for each goal: its figure, its bound and whether it is met; None and None if it was not measured."""
    lines = []
    for goal in GOALS:
        value = goal.figure(found)
        lines.append(
            {
                "goal": goal.what, "value": value, "bound": goal.bound, "at_least": goal.at_least,
                "unit": goal.unit.strip(), "met": None if value is None else goal.met(value),
            }
        )  # fmt: skip
    return lines


def missed(found: Found) -> list[Goal]:
    """The goals that were measured and not met."""
    return [
        goal for goal in GOALS if (value := goal.figure(found)) is not None and not goal.met(value)
    ]  # fmt: skip


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON values, for latest.json."""
    return {
        "command": report.command,
        "date": report.date,
        "hardware": dict(report.hardware),
        "versions": dict(report.versions),
        "settings": dict(report.settings),
        "goals": goal_lines(report.found),
        "cases": case_lines(report.found.results),
        "at_rest": dict(report.found.idle),
        "tenants": dict(report.found.tenants),
        "engine": report.engine,
        "spending_us_per_step": {case: dict(split) for case, split in report.splits.items()},
        "samples_by_library": {case: dict(shares) for case, shares in report.profiles.items()},
    }


def write_json(report: Report, path: Path) -> None:
    """Write latest.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(as_json(report)), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """JSON values with floats of five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def goal_rows(found: Found) -> list[tuple[str, str, str, str]]:
    """(goal, bound, measured, "met" or "missed" or "not measured"), as text."""
    return [goal_row(goal.what, goal.figure(found), goal.bound, goal.unit, goal.at_least) for goal in GOALS]


def goal_row(
    what: str, value: float | None, bound: float, unit: str = "×", at_least: bool = False
) -> tuple[str, str, str, str]:
    """A line of a table of goals, as text; `value` is None if it was not measured."""
    limit = f"{'≥' if at_least else '≤'} {bound:g}{unit}"
    if value is None:
        return (what, limit, "–", "not measured")
    met = value >= bound if at_least else value <= bound
    return (what, limit, f"{value:.2f}{unit}", "met" if met else "missed")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
