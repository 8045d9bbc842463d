"""`streamcell inspect`: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.support.onnx_files import parsed, save

STREAMCELL = Path(sys.executable).with_name("streamcell")
GOOD = "(float[b, 3] x, float[b, 4] h) => (float[b, 3] y, float[b, 4] h_next) { y = Neg(x) h_next = Neg(h) }"
UNCLEAR = (
    "(float[b, 3] x, float[b, 4] a, int64 r) => (float[b, 3] y, float[b, 4] z) { y = Neg(x) z = Neg(a) }"
)


def inspect(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [STREAMCELL, "inspect", *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in done.stderr
    return done


def test_a_model_that_can_be_served_is_described_as_one_json_object(tmp_path: Path) -> None:
    path = save(parsed(GOOD), tmp_path / "good.onnx")
    path.with_suffix(".toml").write_text(
        'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n[[states]]\ninput = "h"\noutput = "h_next"\ninitial = -inf'
    )
    done = inspect(path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["served"] is True
    assert report["described_by"] == "sidecar"
    assert report["session_bytes"] == 16
    assert report["signature"]["states"][0]["initial"] == "-inf"
    assert report["graph"]["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["b", 3]}
    assert report["proof"].startswith("compared with each session alone")
    assert (report["max_batch"], report["problems"]) == (256, [])


def test_a_model_that_can_be_served_is_described_in_words(tmp_path: Path) -> None:
    done = inspect(save(parsed(GOOD), tmp_path / "good.onnx"), "--proof", "quick")
    assert done.returncode == 0
    for line in (
        f"{tmp_path / 'good.onnx'}: can be served as 'good', version 1",
        "described by: the graph; layout batch",
        "  - x: float32[3] (in the graph float32[b, 3])",
        "states, 16 bytes a session, by their names in the graph",
        "  - 'h' float32[4] → 'h_next', 16 bytes",
        "a run takes up to 256 sessions, one timestep each",
    ):
        assert line in done.stdout.splitlines()


def test_an_unclear_model_gets_a_sidecar_to_fill_in_and_the_server_says_where(tmp_path: Path) -> None:
    path = save(parsed(UNCLEAR), tmp_path / "unclear.onnx")
    done = inspect(path, "--write")
    assert done.returncode == 1
    assert "cannot be served: 3 problems" in done.stdout
    assert "  - 'r' has no batch axis; is it a constant" in done.stdout
    assert "likely states, by name or shape\n  - a → z" in done.stdout
    sidecar = path.with_suffix(".toml")
    assert f"wrote {sidecar}" in done.stderr
    again = inspect(path, "--write")
    assert again.returncode == 2
    assert "fill in the `?` in line" in again.stdout
    assert f"{sidecar} exists already; move it away" in again.stderr
    sidecar.write_text(sidecar.read_text().replace("= ?", "= 16000"))
    assert inspect(path).returncode == 0


@pytest.mark.parametrize(
    ("name", "environment", "text"),
    [
        ("none.onnx", {}, "none.onnx: no such file"),
        (
            "bad.onnx",
            {"STREAMCELL_MAX_BATCH": "0"},
            "STREAMCELL_MAX_BATCH: Input should be greater than or equal to 1",
        ),
        ("bad.onnx", {"STREAMCELL_DEVICE": "tpu"}, "device 'tpu': expected"),
        ("bad.onnx", {}, "was not written: the model cannot be read"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, name: str, environment: dict[str, str], text: str
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    done = inspect(tmp_path / name, "--write", **environment)
    assert done.returncode == 2
    assert text in done.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "bad.onnx"]


def test_names_in_a_file_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    model = onnx.load(save(parsed(GOOD.replace("h_next", "k")), tmp_path / "m.onnx"))
    model.graph.input[1].name = "h\x1b[31m"
    onnx.save(model, tmp_path / "m.onnx")
    done = inspect(tmp_path / "m.onnx")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert r"h\x1b[31m" in done.stdout
