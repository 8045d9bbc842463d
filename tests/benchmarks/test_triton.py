"""The strongest peer: its model, the runs of perf_analyzer and what the report says of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from streamcell.benchmarks import triton as against
from streamcell.benchmarks.__main__ import parse
from streamcell.benchmarks.cases import OURS, Target
from streamcell.benchmarks.load import perf_analyzer
from streamcell.benchmarks.load.oip import border, requests_and_runs
from streamcell.benchmarks.load.perf_analyzer import PerfAnalyzer, read_table
from streamcell.benchmarks.load.spec import Load, LoadError
from streamcell.benchmarks.load.usage import family, scheduling_group
from streamcell.benchmarks.report.against_triton import (
    CPU,
    FIGURES,
    GOALS,
    goal_rows,
    grouping,
    missed,
    read_results,
    section,
    with_section,
    write_results,
)
from streamcell.benchmarks.targets import triton
from streamcell.benchmarks.targets.triton_process import PeerError
from streamcell.client.local_server import ServerProcess
from streamcell.service.repository.model_file import open_model
from tests.support.waiting import waited


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_peer_runs_the_served_weights_with_one_state(
    kind: str, models_dir: Path, modules: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    triton.write_repository(tmp_path, open_model(models_dir / f"{kind}.onnx", kind))
    session = ort.InferenceSession(tmp_path / kind / "1/model.onnx", providers=["CPUExecutionProvider"])
    (x_in, state_in), (y_out, state_out) = session.get_inputs(), session.get_outputs()
    config = (tmp_path / kind / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert f'input [{{ name: "{x_in.name}", data_type: TYPE_FP32, dims: [3] }}]' in config
    assert f'output [{{ name: "{y_out.name}", data_type: TYPE_FP32, dims: [2] }}]' in config
    assert f'input_name: "{state_in.name}", output_name: "{state_out.name}"' in config
    assert config.count(f"dims: [{state_in.shape[1]}]") == 2
    x = np.random.default_rng(1).standard_normal((4, 6, 3)).astype(np.float32)
    state = np.zeros((4, state_in.shape[1]), np.float32)
    steps = []
    for step in range(6):
        y, state = session.run(None, {x_in.name: x[:, step], state_in.name: state})
        steps.append(y)
    with torch.no_grad():
        want = modules[kind](torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(np.stack(steps, 1), want, rtol=1e-5, atol=1e-5)


def test_a_model_that_the_peer_cannot_serve_is_refused(models_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="cannot serve a model with the state"):
        triton.write_repository(tmp_path, open_model(models_dir / "tcn.onnx", "tcn"))


def test_a_part_of_the_peer_that_is_not_there_is_named(models_dir: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(PeerError, match=r"there is no .*/nowhere"),
        triton.Triton(tmp_path / "nowhere", tmp_path)(models_dir),
    ):
        pass


# What perf_analyzer 2.60 wrote about Triton 2.51 with eight sequences.
TABLE = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
8,4265.32,2,1093,483,19,92,13,0,1230,3529,4337,6472
"""


def test_perf_analyzers_table_is_read() -> None:
    assert read_table(TABLE) == {"steps_per_s": 4265.32, "p50_ms": 1.23, "p99_ms": 6.472}


@pytest.mark.parametrize(
    "text",
    [
        "",
        TABLE.partition("\n")[0] + "\n",
        TABLE + TABLE.splitlines()[-1],
        TABLE.replace("p99", "p98"),
        TABLE[:-20],
    ],
    ids=["empty", "no line", "two lines", "no p99", "cut off"],
)
def test_another_table_is_an_error(text: str) -> None:
    with pytest.raises(LoadError, match="expected perf_analyzer's table"):
        read_table(text)


# Takes perf_analyzer's options, sends one sequence for each of them to the real server and writes such a table.
_STAND_IN = """\
#!{python}
import argparse, json, os, queue, sys
if sys.argv[1:] == ["--version"]:
    sys.exit("Perf Analyzer Version 2.60.0 (commit 3a49a23)")
import numpy as np
import tritonclient.grpc as triton
parser = argparse.ArgumentParser()
for flag in (
    "-m", "-u", "-i", "--sequence-length", "--sequence-length-variation", "--concurrency-range", "--input-data",
    "-p", "-r", "-s", "-f",
):
    parser.add_argument(flag, required=True)
parser.add_argument("--streaming", action="store_true", required=True)
asked = parser.parse_args()
(name,) = os.listdir(asked.input_data)
x = np.fromfile(os.path.join(asked.input_data, name), np.float32)[None]
answers = queue.Queue()
with triton.InferenceServerClient(asked.u) as client:
    client.start_stream(callback=lambda result, error: answers.put(error))
    steps = int(asked.sequence_length)
    for sequence in range(1, 1 + int(asked.concurrency_range)):
        for step in range(steps):
            tensor = triton.InferInput(name, x.shape, "FP32")
            tensor.set_data_from_numpy(x)
            client.async_stream_infer(asked.m, [tensor], sequence_id=sequence, sequence_start=step == 0,
                                      sequence_end=step == steps - 1)
            error = answers.get(timeout=60)
            if error is not None:
                sys.exit(str(error))
with open({record!r}, "a") as record:
    record.write(json.dumps([asked.u, asked.concurrency_range, asked.sequence_length, os.getsid(0)]) + "\\n")
with open(asked.f, "w") as table:
    # The peer, which the tests reach as localhost, takes twice as long.
    table.write({table!r}.replace("1230", "2460" if asked.u.startswith("localhost") else "1230"))
"""


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A line for each run of the stand-in: address, sequences, steps, its login session."""
    return tmp_path / "record"


@pytest.fixture
def analyzer(tmp_path: Path, record: Path) -> PerfAnalyzer:
    program = tmp_path / "perf_analyzer"
    program.write_text(_STAND_IN.format(python=sys.executable, record=str(record), table=TABLE))
    program.chmod(0o755)
    return PerfAnalyzer(program)


def _target(served: ServerProcess, name: str, host: str) -> Target:
    address = served.target.replace("127.0.0.1", host)
    load = {"dialect": "oip", **border(address, "lstm")}
    return Target(name, address, tuple(family(served.pid)), load=load)


def test_both_servers_are_driven_in_turn_and_compared_a_round(
    served: ServerProcess, analyzer: PerfAnalyzer, record: Path, tmp_path: Path
) -> None:
    ours, peer = _target(served, OURS, "127.0.0.1"), _target(served, triton.NAME, "localhost")
    before, _ = requests_and_runs(served.target, "lstm")
    said: list[str] = []
    settings = against.Settings(sequences=[1, 2], steps=[5], rounds=2, window_s=0.1)
    report = json.loads(json.dumps(against.compare(ours, peer, analyzer, settings, said.append)))
    runs = [json.loads(line) for line in record.read_text().splitlines()]
    requests = sum(int(run[1]) * int(run[2]) for run in runs)
    assert waited(lambda: requests_and_runs(served.target, "lstm")[0] - before == requests)
    a, b = ours.address, peer.address
    assert [run[:3] for run in runs] == [
        [address, count, "5"]
        for turn in ([a, b], [b, a])
        for count in ("1", "2", "1", "2")
        for address in turn
    ]
    here = os.getsid(0)
    assert [run[3] == here for run in runs] == 2 * (4 * [True] + 4 * [False])
    assert len(said) == 8
    assert [(line["sequences"], line["steps"], line["client"]) for line in report["lines"]] == [
        (1, 5, "same"), (2, 5, "same"), (1, 5, "own"), (2, 5, "own"),
    ]  # fmt: skip
    for line in report["lines"]:
        assert line["ratios"]["p50_ms"] == [0.5, 0.5]
        assert line["ratios"]["p99_ms"] == [1.0, 1.0]
        assert len(line["ratios"][CPU]) == 2
        for name in (OURS, triton.NAME):
            assert line[name]["p99_ms"] == 6.472
            assert line[name][CPU] > 0
            assert line[name]["mean_batch"] == 1  # the stand-in waits for each answer
            assert line[name]["client_cpu_us_per_step"] > 0
    assert report["versions"]["perf_analyzer"] == "2.60.0 (commit 3a49a23)"
    assert report["versions"]["triton"].startswith("streamcell ")  # the server's own answer
    assert report["groups"][OURS] == report["groups"][triton.NAME] == scheduling_group(served.pid)
    if report["groups"][OURS]:
        assert report["groups"]["own"] not in (report["groups"]["same"], "")
    write_results(report, tmp_path / "triton.json")
    again = read_results(tmp_path / "triton.json")
    assert again is not None
    assert section(again).count("\n| ") >= len(GOALS) + 4


def test_cpu_a_step_counts_the_requests_that_the_server_has_answered(
    served: ServerProcess, analyzer: PerfAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1.0, 1.6])
    monkeypatch.setattr(perf_analyzer, "cpu_s", lambda pids: next(clock))
    target = _target(served, OURS, "127.0.0.1")
    load = Load(target.address, sessions=2, pids=target.pids, **target.load)
    assert analyzer.run(load, steps=30, apart=False)[CPU] == pytest.approx(0.6e6 / 60)


def test_what_a_failing_perf_analyzer_says_is_in_the_error(served: ServerProcess, tmp_path: Path) -> None:
    program = tmp_path / "perf_analyzer"
    program.write_text("#!/bin/sh\necho cannot reach the moon\nexit 99\n")
    program.chmod(0o755)
    load = Load(served.target, **border(served.target, "lstm"))
    with pytest.raises(LoadError, match="ended with 99: cannot reach the moon"):
        PerfAnalyzer(program).run(load, steps=5, apart=False)
    program.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(LoadError, match="has measured nothing"):
        PerfAnalyzer(program).run(load, steps=5, apart=False)


def _report(ratios: dict[str, float], **more: Any) -> dict[str, Any]:
    figures = dict.fromkeys(FIGURES, 1.0)
    return {
        "date": "2026-11-29",
        "hardware": {"cores": "2", "load average before": "0.20"},
        "versions": {"triton": "triton 2.51.0"},
        "triton_libraries": ["libtcmalloc_minimal.so.4"],
        "settings": {"rounds": 3, "window_s": 1.0},
        "groups": {OURS: "/autogroup-1", "triton": "/autogroup-1", "same": "/autogroup-1", "own": "/autogroup-2"},
        "samples_by_library": {},
        "lines": [
            {
                "sequences": sequences,
                "steps": steps,
                "client": client,
                OURS: figures,
                "triton": figures,
                # The median is what counts.
                "ratios": {
                    name: [9.0, ratios.get(name, 0.5), 0.1] for name in figures
                },
            }
            for steps in (100, 20)
            for client in ("same", "own")
            for sequences in (1, 8, 64, 256)
        ],
    } | more  # fmt: skip


def test_the_goals_take_the_worst_line() -> None:
    good = _report({})
    assert [row[3] for row in goal_rows(good)] == ["met"] * 4
    assert missed(good) == []
    for at, (steps, sequences, figure, goal) in enumerate(
        [(100, 256, CPU, 0), (100, 1, "p50_ms", 1), (100, 8, "p99_ms", 2), (20, 64, CPU, 3)]
    ):
        report = _report({})
        (line,) = [
            line
            for line in report["lines"]
            if (line["steps"], line["sequences"], line["client"])
            == (steps, sequences, ("same", "own")[at % 2])
        ]
        line["ratios"][figure] = [1.0, 1.25, 1.5]
        assert missed(report) == [GOALS[goal]]
        assert goal_rows(report)[goal][2:] == ("1.25×", "missed")
    short = _report({}, lines=[line for line in good["lines"] if line["steps"] == 20])
    assert [row[3] for row in goal_rows(short)] == 3 * ["not measured"] + ["met"]


def test_the_report_says_how_client_and_servers_were_grouped() -> None:
    groups = _report({})["groups"]
    text = (
        "The servers were in /autogroup-1, perf_analyzer in /autogroup-1 (*same*, with them) or in "
        "/autogroup-2 (*own*, alone)."
    )
    assert text in grouping(groups)
    assert text in section(_report({}))
    assert "*own*, with them" in grouping(groups | {"own": "/autogroup-1"})
    assert "does not group processes" in grouping(dict.fromkeys(groups, ""))


def test_the_page_gets_the_section_and_keeps_the_rest() -> None:
    page = with_section("# Benchmarks\n\ntext\n\n", None)
    assert page.startswith("# Benchmarks\n\ntext\n\n## The strongest peer\n")
    assert "`make bench PEER=triton` measures" in page
    again = with_section(page, _report({}))
    assert again == "# Benchmarks\n\ntext\n\n" + section(_report({}))
    assert "| 64 × 20, own | 1.0 | 1.0 | **0.50** (0.10–9.00) |" in again
    assert "Other programs" not in again
    busy = _report({}, hardware={"cores": "2", "load average before": "1.20"})
    assert "Other programs kept the cores busy (load average 1.20" in section(busy)
    assert "Triton 2.51.0 with its ONNX Runtime back end" in again


def test_the_committed_page_has_the_committed_figures() -> None:
    page = against.PAGE.read_text()
    assert with_section(page, read_results(against.RESULTS)) == page


def test_the_peers_parts_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["--triton-server", "x"], ["--triton-backends", "x"]):
        with pytest.raises(SystemExit):
            parse(["--peer", "triton", *given])
        assert "--peer triton needs --triton-server and --triton-backends" in capsys.readouterr().err
    parts = ["--triton-server", "server", "--triton-backends", "backends"]
    assert parse(["--peer", "triton", *parts]).peers == {
        "triton": triton.Triton(Path("server"), Path("backends"))
    }
