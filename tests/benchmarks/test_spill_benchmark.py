"""What spilled sessions cost, and resumable ones over gRPC: each way is measured, on real engines and servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamcell.benchmarks import durable_wire, spill


def test_each_way_of_having_a_row_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = spill.measure([8], [2], 2)
    assert [(each["device"], each["rows"]) for each in found] == [("cpu", 2), ("apart", 2)]
    assert all(each[way] > 0 for each in found for way in spill.WAYS)
    spill.show(found)
    assert "| apart | 2 |" in capsys.readouterr().out


def test_sessions_that_can_be_resumed_are_measured_on_the_wire(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = durable_wire.wire_costs([2], 1, tmp_path, warm_up_s=0.1, measure_s=0.5)
    assert len(list(results)) == len(durable_wire.WAYS)
    durable_wire.show(results, [2])
    assert "process / none" in capsys.readouterr().out
