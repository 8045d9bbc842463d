"""The costs of durable sessions: each way is measured, on real models, servers and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamcell.benchmarks.durability import MODEL, WAYS, recovery_costs, resume_costs, show, step_costs
from streamcell.benchmarks.specimens import export


def test_each_cost_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(tmp_path, MODEL)
    (line,) = steps = step_costs(tmp_path, [3], 1, tmp_path / "steps")
    assert set(line["us"]) == set(WAYS)
    assert all(us > 0 for us in line["us"].values())
    assert not list((tmp_path / "steps").rglob("*.journal"))
    resume = {"process": resume_costs(tmp_path, 3, tmp_path / "resume", "--durability", "process")}
    assert resume["process"]["cpu_us_each"] > 0
    recovery = recovery_costs(tmp_path, 3, tmp_path / "recovery")
    assert 0 < recovery["recovery_s"] < recovery["ready_s"]
    show({"steps": steps, "resume": resume, "recovery": recovery})
    assert "| 3 |" in capsys.readouterr().out
