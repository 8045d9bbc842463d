"""The instruments: real loads on a real server, and reports that say what was found and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamcell.benchmarks import specimens, tenants
from streamcell.benchmarks.__main__ import parse, run
from streamcell.benchmarks.cases import AIO, ENGINE, LANE, OURS
from streamcell.benchmarks.load.main import run_load
from streamcell.benchmarks.load.spec import Load, LoadError
from streamcell.benchmarks.load.usage import family
from streamcell.benchmarks.report.goals import GOALS, Found
from streamcell.benchmarks.report.outcomes import Results
from streamcell.benchmarks.report.page import page
from streamcell.benchmarks.report.report import RATIOS, Report, as_json, case_lines, goal_lines, write_json
from streamcell.benchmarks.report.spending import split
from streamcell.client.local_server import ServerProcess
from tests.support.waiting import waited

INPUT_BYTES, OUTPUT_BYTES = 12, 8
CPU = "server_cpu_us_per_step"


@pytest.fixture(scope="module")
def served(start_server: Any, models_dir: Path) -> Any:
    """A server of this module's own: loads leave sequences without an end on it."""
    return start_server(models_dir)


@pytest.fixture
def load(served: ServerProcess) -> Callable[..., dict[str, Any]]:
    """Runs a short load on the small models."""

    def run_one(**changes: Any) -> dict[str, Any]:
        about = {"model": "lstm", "input_bytes": INPUT_BYTES, "output_bytes": OUTPUT_BYTES, "sessions": 4}
        about |= {
            "input_shape": (1, 3),
            "warm_up_s": 0.05,
            "measure_s": 0.5,
            "pids": tuple(family(served.pid)),
        }
        return run_load(Load(served.target, **{**about, **changes}))

    return run_one


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outstanding": 8},
        {"steps": 5},
        {"rate": 200.0},
        {"connections": 2},
        {"dialect": "predict", "model": "mlp"},
        {"dialect": "frames"},
        {"dialect": "frames", "outstanding": 2},
        {"messages": 1},
        {"messages": 3},
        {"dialect": "oip", "messages": 2},
        {"dialect": "oip-unary", "messages": 2},
    ],
    ids=[
        "ping-pong", "pipelined", "chunks", "open loop", "two connections", "predict", "frames", "frames×2",
        "sessions of one message", "sessions of three", "sequences", "sequences of calls",
    ],
)  # fmt: skip
def test_every_step_of_a_load_is_one_that_the_server_counts(
    load: Callable[..., dict[str, Any]], served: ServerProcess, changes: dict[str, Any]
) -> None:
    model = changes.get("model", "lstm")
    before = served.metric("streamcell_steps_total", model=model)
    found = load(**changes)
    steps = found["steps"]
    assert steps > 0
    assert found["steps_per_s"] == pytest.approx(steps / found["seconds"])
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["p999_ms"]
    assert found[CPU] > 0
    # What was measured, and what came before and after it.
    assert waited(lambda: served.metric("streamcell_steps_total", model=model) - before >= steps)


@pytest.mark.parametrize("dialect", ["streamcell", "oip", "oip-unary"])
def test_short_sessions_are_as_many_as_their_messages_say(
    load: Callable[..., dict[str, Any]], served: ServerProcess, dialect: str
) -> None:
    names = ("streamcell_sessions_opened_total", "streamcell_sessions_ended_total")
    before = [served.metric(name, model="lstm") for name in names]
    messages = load(dialect=dialect, messages=2)["total_messages"]

    def right() -> bool:
        """Each of the four clients may stop after its session's first message. Ends are counted after the replies."""
        opened, ended = (
            served.metric(name, model="lstm") - then for name, then in zip(names, before, strict=True)
        )
        return messages / 2 <= opened <= messages / 2 + 4 and opened - 4 <= ended <= opened

    assert waited(right)


def test_an_open_loop_keeps_to_its_rate(load: Callable[..., dict[str, Any]]) -> None:
    assert load(rate=100.0, measure_s=0.5)["messages"] <= 75  # 50, and what a stall had put off


@pytest.mark.alone
def test_thousands_of_sessions_open_at_once(load: Callable[..., dict[str, Any]]) -> None:
    assert load(sessions=4000)["total_messages"] >= 4000


def test_a_load_that_fails_says_what_the_server_did(load: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(LoadError, match="unknown model: 'nobody'"):
        load(model="nobody")
    with pytest.raises(LoadError, match="12 bytes"):
        load(input_bytes=8)


def test_a_short_run_measures_every_target_in_turn_and_writes_it_down(tmp_path: Path) -> None:
    from rich.console import Console

    asked = parse(["--quick", "--only", "ping-pong 8", "--no-rest", "--no-engine", "--no-tenants"])
    report = run(asked, Console(quiet=True))
    write_json(report, tmp_path / "results" / "latest.json")
    written = json.loads((tmp_path / "results" / "latest.json").read_text())
    servers = {line["server"]: line for line in written["cases"]}
    assert {OURS, AIO, LANE, ENGINE} <= servers.keys()
    assert {line["case"] for line in written["cases"]} == {"ping-pong 8"}
    ours = servers[OURS]
    for name in ("steps_per_s", "p50_ms", "p99_ms", CPU, "mean_batch"):
        assert ours[name] > 0
    assert ours["ratios"].keys() == RATIOS.keys()
    assert ours["ratios"]["cpu_over_aio_echo"] == pytest.approx(ours[CPU] / servers[AIO][CPU], rel=1e-3)
    assert written["versions"]["grpcio"]
    assert written["hardware"]["cores"]
    assert {goal["met"] for goal in written["goals"]} == {None}  # none is about 8 sessions
    text = page(report, None)
    assert "Generated by `python -m streamcell.benchmarks --quick" in text
    assert text.count("not measured") == len(GOALS)


def figures(**given: float) -> dict[str, float]:
    return {"steps_per_s": 1000.0, "p50_ms": 1.0, "p99_ms": 2.0, CPU: 20.0, "mean_batch": 32.0} | given


def found(cpu: float) -> Found:
    results = Results()
    for noise in (1.0, 3.0, 2.0):  # a machine that is three times slower for a while
        results.add("ping-pong 64", OURS, figures(**{CPU: cpu * noise}))
        results.add("ping-pong 64", AIO, figures(**{CPU: 40 * noise}))
        results.add("ping-pong 64", LANE, figures(**{CPU: 8 * noise}))
        results.add("ping-pong 64", ENGINE, figures(**{CPU: 3 * noise}))
    return Found(results, {})


def report(of: Found) -> Report:
    return Report("make bench", "2026-01-02", {"cores": "2"}, {"Python": "3"}, {"rounds": 3}, of)


@pytest.mark.parametrize(("cpu", "met"), [(20.0, True), (30.0, True), (31.0, False)])
def test_a_ratio_is_the_median_of_rounds_and_decides_whether_a_goal_is_met(cpu: float, met: bool) -> None:
    (line,) = [line for line in goal_lines(found(cpu)) if line["value"] is not None]
    assert line["value"] == pytest.approx(cpu / 40)
    assert line["met"] is met
    text = page(report(found(cpu)), None)
    assert ("| met |" in text) is met
    assert ("| missed |" in text) is not met


def test_a_flood_beside_a_calm_tenant_is_measured_and_has_its_goal_and_section(tmp_path: Path) -> None:
    specimens.export(tmp_path, "lstm")
    apart = "tenants, the server on a core of its own"
    settings = {name: tenants.SETTINGS[name] for name in ("tenants", apart)}
    cores = os.sched_getaffinity(0)
    measured = tenants.measure(tmp_path, rounds=1, flood=4, seconds=0.6, settings=settings)
    assert os.sched_getaffinity(0) == cores
    assert list(measured) == (list(settings) if len(cores) > 1 else ["tenants"])
    for name, each in measured.items():
        kinds = tenants.KINDS if name == "tenants" else ("quiet", "flooded")
        for kind in kinds:
            assert 0 < each[kind]["p50_ms"] <= each[kind]["p99_ms"]
            assert ("steps_per_s" in each[kind]) is (kind != "quiet")
        for ratio, base in (("p99_ratio", "quiet"), ("p99_over_elsewhere", "elsewhere")):
            assert (ratio in each) is (base in kinds)
            if base in kinds:
                assert each[ratio] == pytest.approx(each["flooded"]["p99_ms"] / each[base]["p99_ms"])
    measured.setdefault(apart, measured["tenants"])
    for ratio, met in ((2.0, True), (2.1, False)):
        ratios = {"p99_ratio": ratio, "p99_over_elsewhere": 1.5}
        shown = {
            **measured,
            "tenants": {**measured["tenants"], **ratios},
            apart: {**measured[apart], "p99_ratio": ratio},
        }
        of = Found(Results(), {}, shown)
        line, beside, alone = [line for line in goal_lines(of) if line["value"] is not None]
        assert (line["met"], line["bound"]) == (alone["met"], alone["bound"]) == (met, 2.0)
        assert (beside["met"], beside["value"]) == (True, 1.5)
        text = page(report(of), None)
        assert json.loads(json.dumps(as_json(report(of))))["tenants"]["tenants"]["elsewhere"]
        assert ("waits for one turn of the flood's messages" in text) is not met
        assert f"| {ratio:.2f} |" in text.split("## A flood beside a calm tenant")[1]


def test_shares_of_a_step_s_cpu_add_up() -> None:
    parts = split(found(20.0).results, "ping-pong 64")
    assert parts == {"whole": 40.0, "transport": 16.0, "model": 6.0, "between": 18.0}
    assert split(found(20.0).results, "ping-pong 1") == {}


def test_the_report_holds_nothing_that_json_cannot(tmp_path: Path) -> None:
    document = as_json(report(found(20.0)))
    assert json.loads(json.dumps(document)) == document
    assert len(case_lines(found(20.0).results)) == 4
