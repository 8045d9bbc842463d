"""The demos: listed by shape, run by name, each from its data to a live server's answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.cli.demos import chorales as demo_chorales
from streamcell.cli.demos.base import SHAPES, Demo, Options, Report
from streamcell.cli.demos.registry import DEFAULT, DEMOS, by_name, by_shape
from streamcell.cli.demos.shared.outliving import Streamed
from streamcell.models import load_chorales
from streamcell.models.data import voice
from streamcell.models.data.chorales import corpus_files, part_of
from streamcell.models.data.harmony import load_degrees
from streamcell.models.data.registry import DATASETS
from streamcell.models.training import presets

PLAIN = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


def test_the_list_names_every_demo_under_its_shape() -> None:
    done = CliRunner().invoke(app, ["demo", "--list"], env=PLAIN)
    assert done.exit_code == 0
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    assert len(lines) == len(DEMOS)
    shapes = [shape for shape, _ in by_shape()]
    assert shapes == [shape for shape in SHAPES if shape in shapes]
    for demo in DEMOS:
        (line,) = (line for line in lines if demo.summary in line)
        assert demo.name in line.removesuffix(demo.summary).split()
    for shape in shapes:
        assert sum(line.startswith(shape) for line in lines) == 1


def test_demos_have_names_and_folders_of_their_own() -> None:
    assert len(by_name()) == len({demo.folder for demo in DEMOS}) == len(DEMOS)
    assert DEFAULT.folder == Path("runs/demo")


def test_an_unknown_demo_is_refused_by_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "nonesuch", "--out", str(tmp_path / "out")], env=PLAIN)
    assert done.exit_code == 2
    assert "there is no demo 'nonesuch'; the demos are" in done.output
    assert not (tmp_path / "out").exists()


def test_a_report_is_saved_with_the_files_it_names(tmp_path: Path) -> None:
    report = Report("t", [("loss", "1.5")], {"loss": 1.5}, {"model": tmp_path / "m.onnx"}).save(tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document == {"loss": 1.5, "files": {what: str(path) for what, path in report.files.items()}}
    assert report.files["report"] == tmp_path / "report.json"


def test_a_demo_that_saw_what_must_not_be_says_so_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = Streamed(nats=8.0, nats_torch=8.0, steps=1)
    demo = Demo(
        "x", "one-to-one", "s", lambda folder, options: Report("t", [], {}, {}, streamed.wrong()), tmp_path
    )
    monkeypatch.setattr("streamcell.cli.commands.demo.by_name", lambda: {"x": demo})
    assert CliRunner().invoke(app, ["demo", "x"], env=PLAIN).exit_code == 0
    streamed.lost, streamed.errors, streamed.error, streamed.nats = 2, 1, "SESSION_NOT_FOUND: gone", 8.001
    done = CliRunner().invoke(app, ["demo", "x"], env=PLAIN)
    assert done.exit_code == 1
    for what in ("2 steps lost, 0 doubled", "SESSION_NOT_FOUND: gone", "served loss is 8.001000"):
        assert what in done.output


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parsed corpora of a few chorales, so that no test waits for four hundred."""
    chosen: dict[str, list[Path]] = {"train": [], "valid": [], "test": []}
    for path in corpus_files():
        if len(chosen[part_of(path.stem)]) < 2:
            chosen[part_of(path.stem)].append(path)
    files = [path for part in chosen.values() for path in part]
    folder = tmp_path_factory.mktemp("data")
    load_chorales(folder, files=files)
    load_degrees(folder, files=files)
    return folder


def run_demo(name: str, out: Path, data_folder: Path, *more: str) -> dict[str, Any]:
    """What the demo's report says; its files are there and its pictures are pictures."""
    asked = ["demo", name, "--out", str(out), "--data-folder", str(data_folder), "--sessions", "16", *more]
    done = CliRunner().invoke(app, asked, env=PLAIN)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads((out / "report.json").read_text())
    for path in map(Path, document["files"].values()):
        assert path.is_relative_to(out)
        assert path.exists()
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
    return document


def trained(out: Path) -> dict[str, Any]:
    """What the run in `out` says of its training."""
    document: dict[str, Any] = json.loads((out / "config.json").read_text())["training"]
    return document


@pytest.mark.slow
def test_digits_are_read_alike_in_batches_and_in_streams(tmp_path: Path, data_folder: Path) -> None:
    report = run_demo("digits", tmp_path, data_folder)
    assert report["accuracy_torch"] == report["accuracy_predict"] == report["accuracy_streamed"] > 0.9
    assert report["largest_difference"] < 1e-4
    assert report["steps"] == report["sequences"] == 540
    assert report["mean_batch"] > 1


@pytest.mark.slow
def test_vowels_are_answered_once_at_the_end_of_each_utterance(tmp_path: Path, data_folder: Path) -> None:
    report = run_demo("vowels", tmp_path, data_folder)
    assert report["accuracy_torch"] == report["accuracy_served"] > 0.9
    assert report["largest_difference"] < 1e-4
    assert (report["answers"], report["steps"]) == (370, 5687)
    assert report["mean_batch"] > 1


@pytest.mark.slow
def test_harmony_is_labelled_step_by_step_as_in_pytorch(tmp_path: Path, data_folder: Path) -> None:
    report = run_demo("harmony", tmp_path, data_folder)
    assert report["accuracy_torch"] == report["accuracy_served"]
    assert report["accuracy_served"] > 1 / 7
    assert report["sequences"] == 2
    assert report["accuracy_without_memory"] > 0


@pytest.mark.slow
def test_speech_is_heard_in_unseen_noise_as_in_pytorch(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str], str]
) -> None:
    program("espeak-ng")
    # A sixth of the data.
    parts = {name: replace(part, clips=part.clips // 6) for name, part in voice.PARTS.items()}
    monkeypatch.setattr(voice, "PARTS", parts)
    report = run_demo("voice", tmp_path, data_folder)
    assert report["frame_error_served"] == report["frame_error_torch"] < 0.15
    assert report["frame_error_served"] < report["frame_error_of_loudness"] / 2
    assert report["largest_difference"] < 1e-3
    assert (report["sequences"], report["steps"]) == (20, 8000)
    assert report["mean_batch"] > 1
    measured = trained(tmp_path)["result"]
    assert measured["test_frame_error_rate"] == report["frame_error_torch"]
    assert measured["test_f1"] == report["f1_served"]


@pytest.mark.slow
def test_chorales_are_the_default_and_their_report_says_what_it_did(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_chorales, "EPOCHS", 2)  # by the clock it would be another model each time
    report = run_demo(DEFAULT.name, tmp_path, data_folder, "--passes", "2")
    assert list(report) == [
        *("loss_torch", "loss_served", "sessions", "pieces", "steps", "steps_per_s", "p50_ms", "p99_ms"),
        *("mean_batch", "server_cpu_us_per_step", "files"),
    ]
    assert report["loss_served"] == pytest.approx(report["loss_torch"], rel=1e-5)
    assert report["pieces"] == 2
    assert list(report["files"]) == ["loss curve", "piano roll", "exported model", "report"]
    # Once more: nothing is trained again.
    weights = (tmp_path / "weights.safetensors").read_bytes()
    again = run_demo(DEFAULT.name, tmp_path, data_folder, "--passes", "1")
    assert (tmp_path / "weights.safetensors").read_bytes() == weights
    assert again["loss_torch"] == report["loss_torch"]


def test_the_demos_train_the_model_that_the_readmes_figures_are_of() -> None:
    settings = demo_chorales.settings(Path("out"), Options(Console()))
    assert settings.model == {"kind": "lstm", "hidden_size": 320, "num_layers": 1, "dropout": 0.45}
    assert (settings.epochs, settings.learning_rate, settings.seed, settings.threads) == (60, 0.01, 1, 2)
    assert settings.model != presets.CHORALES.model


@pytest.mark.slow
def test_a_demo_that_trains_again_comes_to_the_same_weights_and_the_same_loss(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_chorales, "EPOCHS", 2)
    losses, weights = [], []
    threads = torch.get_num_threads()
    try:
        for count in (1, threads + 1):  # what the process has otherwise makes no difference to training
            torch.set_num_threads(count)
            torch.rand(count)  # nor what has been drawn
            report = run_demo(DEFAULT.name, tmp_path, data_folder, "--passes", "1", "--retrain")
            losses.append(report["loss_torch"])
            weights.append((tmp_path / "weights.safetensors").read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert trained(tmp_path)["epochs"] == trained(tmp_path)["result"]["epochs"] == 2
    assert trained(tmp_path)["minutes"] is None
    assert weights[0] == weights[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_every_demo_trains_by_epochs_unless_it_is_told_minutes() -> None:
    given = Options(Console(), minutes=2.0), Options(Console())
    assert [each.training(7) for each in given] == [{"minutes": 2.0}, {"epochs": 7}]
    assert [each.training() for each in given] == [{"minutes": 2.0}, {}]
    for dataset in DATASETS:
        assert presets.config(dataset, **given[1].training()).minutes is None


@pytest.mark.parametrize("module", ["torch", "music21", "onnxruntime", "numpy"])
def test_listing_the_demos_needs_no_extra(module: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['streamcell', 'demo', '--list'];"
        "from streamcell.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
