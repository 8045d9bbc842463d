"""The benchmarks of the engine and of a card run without one, and say what they measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from streamcell.benchmarks import engine, gpu
from streamcell.service.engine.engine import Engine


def test_the_gpu_script_walks_its_path_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(gpu, "TARGET", {"rows": 4, "hidden": 16, "us": 1e9})
    flags = ["--device", "apart", "--hidden", "16", "--rows", "1", "4", "--seconds", "0.02", "--runs", "6"]
    assert gpu.main(flags) == 0
    report = json.loads((tmp_path / "out/gpu.json").read_text())
    assert {(line["kind"], line["way"]) for line in report["parity"]} == {
        (kind, way) for kind in gpu.KINDS for way in gpu.WAYS
    }
    assert all(line["error"] <= 1e-5 and line["steps"] > 6 for line in report["parity"])
    assert [(tick["hidden"], tick["rows"]) for tick in report["ticks"]] == [(16, 1), (16, 4)]
    for tick in report["ticks"]:
        assert set(tick["us"]) == {"torch.nn.LSTM", *gpu.WAYS}
        assert tick["best"] in gpu.WAYS
        assert not tick["failed"]
    assert [target["met"] for target in report["target"]] == [True]
    assert "parity  gru, reset before" in capsys.readouterr().out


def test_a_way_that_fails_while_it_is_timed_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = gpu._tick

    def failing(engine: Engine, rows: int) -> Callable[[], None]:
        run = tick(engine, rows)
        return run if engine._programs._single is None else broken

    def broken() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "_tick", failing)
    flags = ["--device", "apart", "--only", "ticks", "--hidden", "16", "--rows", "1", "--seconds", "0.02"]
    assert gpu.main([*flags, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    (line,) = report["ticks"]
    assert not report["parity"]
    assert line["best"] == "operator"
    assert set(line["failed"]) == {"decomposed", "decomposed, CUDA graph"}
    assert all("illegal memory access" in text for text in line["failed"].values())


def test_a_card_that_cannot_be_had_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cuda:7", "--out", str(tmp_path)]) == 2
    assert "device cuda:7: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_engine_is_measured_every_way() -> None:
    lines = engine.measure(["lstm", "mlp"], [16], [(1, 1), (4, 3)], seconds=0.02)
    assert [(line["kind"], line["rows"], line["steps"]) for line in lines] == [
        (kind, rows, steps) for kind in ("lstm", "mlp") for rows, steps in ((1, 1), (4, 3))
    ]
    for line in lines:
        assert line["engine_us"] > 0
        assert line["by_hand_us"] > 0
        assert (line["decomposed_us"] is not None) == (line["kind"] == "lstm" and line["steps"] == 1)
