"""The demos: listed by shape, run by name, each from its data to a live server's answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.cli.demo_base import SHAPES, Report
from streamcell.cli.demos import DEFAULT, DEMOS, by_name, by_shape, folder

PLAIN = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


def test_the_list_names_every_demo_under_its_shape() -> None:
    done = CliRunner().invoke(app, ["demo", "--list"], env=PLAIN)
    assert done.exit_code == 0
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    assert len(lines) == len(DEMOS)
    shapes = [shape for shape, _ in by_shape()]
    assert shapes == [shape for shape in SHAPES if shape in shapes]
    for demo in DEMOS:
        (line,) = (line for line in lines if demo.summary[:20] in line)
        assert demo.name in line
    for shape in shapes:
        assert sum(line.startswith(shape) for line in lines) == 1


def test_demos_have_names_and_folders_of_their_own() -> None:
    assert len(by_name()) == len({folder(demo) for demo in DEMOS}) == len(DEMOS)
    assert folder(DEFAULT) == Path("runs/demo")


def test_an_unknown_demo_is_refused_by_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "nonesuch", "--out", str(tmp_path / "out")], env=PLAIN)
    assert done.exit_code == 2
    assert "there is no demo 'nonesuch'; there is" in done.output
    assert not (tmp_path / "out").exists()


def test_a_report_is_saved_with_the_files_it_names(tmp_path: Path) -> None:
    report = Report("t", [("loss", "1.5")], {"loss": 1.5}, {"model": tmp_path / "m.onnx"}).save(tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document == {"loss": 1.5, "files": {what: str(path) for what, path in report.files.items()}}
    assert report.files["report"] == tmp_path / "report.json"


@pytest.mark.parametrize("module", ["torch", "music21", "onnxruntime", "numpy"])
def test_listing_the_demos_needs_no_extra(module: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['streamcell', 'demo', '--list'];"
        "from streamcell.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
