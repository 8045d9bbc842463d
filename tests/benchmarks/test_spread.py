"""The comparison of one process, front ends and independent servers on one port."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamcell.benchmarks.load.several import merged, share
from streamcell.benchmarks.spread import FIGURES, ONE, markdown, parse, run


def test_a_quick_run_measures_each_way_and_compares_it_with_one_process(tmp_path: Path) -> None:
    said: list[str] = []
    asked = parse(["--quick", "--generators", "2", "--json", str(tmp_path / "spread.json")], cores=2)
    report = json.loads(json.dumps(run(asked, said.append)))
    lines = {line["server"]: line for line in report["lines"]}
    assert list(lines) == [ONE, "2 front ends", "2 servers"]
    assert len(said) == len(lines)
    for line in lines.values():
        assert line["sessions"] == 8
        assert line["mean_batch"] >= 1
        assert all(line[name] > 0 and line["over_one_process"][name] > 0 for name in FIGURES)
    assert set(lines[ONE]["over_one_process"].values()) == {1.0}
    text = markdown(report["lines"])
    assert text.count("\n") == 1 + len(lines)
    assert text.count("×") == 2 * len(FIGURES)


@pytest.mark.parametrize(("cores", "counts"), [(1, [2]), (2, [2]), (6, [2, 4]), (64, [2, 4, 8])])
def test_the_comparison_adapts_to_the_cores(cores: int, counts: list[int]) -> None:
    asked = parse([], cores)
    assert asked.counts == counts
    assert asked.generators == max(1, cores // 2)


def test_sessions_are_divided_evenly() -> None:
    assert [share(10, 4, number) for number in range(4)] == [3, 3, 2, 2]


def test_windows_that_were_measured_together_count_as_one() -> None:
    def window(messages: int, first: float, last: float) -> dict[str, object]:
        return {
            "messages": messages,
            "steps": messages,
            "steps_per_s": messages / 2,
            "server_cores": 1.5,
            "quantiles_ms": np.linspace(first, last, 1001).tolist(),
        }

    found = merged([window(3000, 0.0, 1.0), window(1000, 1.0, 2.0)])
    assert (found["messages"], found["steps_per_s"], found["server_cores"]) == (4000, 2000, 1.5)
    assert found["server_cpu_us_per_step"] == pytest.approx(750)
    assert found["p50_ms"] == pytest.approx(2 / 3, abs=0.01)
    assert found["p99_ms"] == pytest.approx(1.96, abs=0.01)
