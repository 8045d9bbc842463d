"""`streamcell stream` and tables as people have them: names, orders, gaps, encodings, pipes, formats."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from streamcell.cli import app
from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.export import export_model

X = np.random.default_rng(5).standard_normal((9, 3)).astype(np.float32).round(3)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
NAMES = ["load", "wind", "sun"]


@pytest.fixture(scope="module")
def server(start_server: Any, modules: dict[str, torch.nn.Module], tmp_path_factory: Any) -> ServerProcess:
    """Serves `power`, whose card names the columns of its training data, on a server that takes NaN; and `lstm`."""
    folder = tmp_path_factory.mktemp("models")
    data = {"columns": NAMES, "targets": ["load", "sun"]}
    export_model(modules["lstm"], folder / "power.onnx", training={"data": data})
    export_model(modules["lstm"], folder / "lstm.onnx")
    server: ServerProcess = start_server(folder, "--non-finite", "allow")
    return server


@pytest.fixture
def stream(server: ServerProcess) -> Callable[..., Result]:
    def run(*arguments: object, text: str | None = None) -> Result:
        command = ["stream", "--target", server.target, *map(str, arguments)]
        return CliRunner().invoke(app, command, input=text)

    return run


@pytest.fixture(scope="module")
def y(modules: dict[str, torch.nn.Module]) -> np.ndarray[Any, Any]:
    return reference(modules["lstm"], X)


def reference(module: torch.nn.Module, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        found: np.ndarray[Any, Any] = module(torch.from_numpy(x[None]))[0][0].numpy()
    return found


def text_of(names: list[str], columns: list[Any], separator: str = ",") -> str:
    rows = [names, *zip(*columns, strict=True)]
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def table(result: Result) -> tuple[list[str], np.ndarray[Any, Any]]:
    assert result.exit_code == 0, result.stderr
    names, *rows = csv.reader(io.StringIO(result.stdout))
    return names, np.array([[value or "nan" for value in row] for row in rows], np.float32)


def test_columns_are_taken_by_name_and_outputs_have_theirs(stream: Any, tmp_path: Path, y: Any) -> None:
    days = [f"2026-01-{day:02}" for day in range(1, 10)]
    file = tmp_path / "power.csv"
    file.write_text(text_of(["date", "load", "wind", "note", "sun"], [days, X[:, 0], X[:, 1], days, X[:, 2]]))
    result = stream("power", file)
    names, values = table(result)
    assert names == ["load", "sun"]
    np.testing.assert_allclose(values, y, **TOLERANCE)
    assert result.stderr == f"{file}: not used: date, note\n"


def test_names_from_elsewhere_do_not_move_the_terminals_cursor(stream: Any, tmp_path: Path) -> None:
    file = tmp_path / "power.csv"
    for names in (["load", "wind\x1b[2J", "sun"], [*NAMES, "note\x1b[2J"]):
        file.write_text(text_of(names, [X[:, 0]] * len(names)))
        assert "\\x1b[2J" in (told := stream("power", file).stderr)
        assert "\x1b" not in told


def test_another_order_and_missing_names_are_refused_with_the_way_on(
    stream: Any, tmp_path: Path, y: Any
) -> None:
    file = tmp_path / "power.csv"
    file.write_text(text_of(["wind", "load", "sun"], [X[:, 1], X[:, 0], X[:, 2]]))
    result = stream("power", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        "power.csv:1: the columns are in another order than the model's: expected load, wind, sun, got wind, load, sun"
        in (result.stderr)
    )
    assert "--match any-order" in result.stderr
    np.testing.assert_allclose(table(stream("power", file, "--match", "any-order"))[1], y, **TOLERANCE)

    file.write_text(text_of(["load", "wind", "cloud"], list(X.T)))
    result = stream("power", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "power.csv:1: no column sun: the model takes load, wind, sun" in result.stderr
    assert "--match position" in result.stderr
    np.testing.assert_allclose(table(stream("power", file, "--match", "position"))[1], y, **TOLERANCE)

    file.write_text(text_of(["load", "wind", "wind", "sun"], [*X.T, X[:, 0]]))
    assert "more than one column is named wind" in stream("power", file).stderr


def test_a_model_without_names_takes_columns_by_position_or_by_its_tensors_names(
    stream: Any, tmp_path: Path, y: Any
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(text_of(["t", "x_0", "x_1", "x_2"], [range(9), *X.T]))
    names, values = table(stream("lstm", file))
    assert names == ["y_0", "y_1"]
    np.testing.assert_allclose(values, y, **TOLERANCE)
    file.write_text(text_of(["x_1", "x_0", "x_2"], list(X.T)))
    assert "another order" in stream("lstm", file).stderr
    file.write_text(text_of(["a", "b", "c"], list(X.T)))
    np.testing.assert_allclose(table(stream("lstm", file))[1], y, **TOLERANCE)
    file.write_text(text_of(["a", "b", "c", "d"], [*X.T, X[:, 0]]))
    result = stream("lstm", file)
    assert result.exit_code == 2
    assert "expected 3 columns, got 4: the model takes x_0, x_1, x_2" in result.stderr


def gappy() -> tuple[str, np.ndarray[Any, Any]]:
    """A CSV with an empty cell in row 2, a blank line as row 4, a row of empty cells as row 5; and its values."""
    x = X.copy()
    x[2, 1] = x[4] = x[5] = np.nan
    lines = text_of(NAMES, list(X.T)).splitlines()
    lines[3] = f"{X[2, 0]},,{X[2, 2]}"
    lines[5], lines[6] = "", ",NA,"
    return "\n".join([*lines, "", ""]), x


def test_gaps_are_sent_as_gaps(stream: Any, tmp_path: Path, server: ServerProcess) -> None:
    text, x = gappy()
    file = tmp_path / "power.csv"
    file.write_text(text)
    _, values = table(stream("power", file))
    # ONNX Runtime's LSTM makes numbers of NaN, other than PyTorch's.
    with connect(server.target) as client, client.session("power") as session:
        wanted = session.run(x)
    with connect(server.target) as client, client.session("power") as session:
        assert not np.allclose(session.run(np.nan_to_num(x)), wanted)
    np.testing.assert_allclose(values, wanted, **TOLERANCE)


def test_gaps_are_filled_or_left_out_if_that_is_asked_for(stream: Any, tmp_path: Path, modules: Any) -> None:
    text, x = gappy()
    file = tmp_path / "power.csv"
    file.write_text(text)
    filled = x.copy()
    for row in range(1, len(x)):
        filled[row] = np.where(np.isnan(filled[row]), filled[row - 1], filled[row])
    _, values = table(stream("power", file, "--gaps", "forward", "--chunk", 4))
    np.testing.assert_allclose(values, reference(modules["lstm"], filled), **TOLERANCE)

    here = ~np.isnan(x).any(axis=1)
    wanted = np.full((len(x), 2), np.nan, np.float32)
    wanted[here] = reference(modules["lstm"], x[here])
    for options in ((), ("--chunk", 4), ("--chunk", 100)):  # rows of outputs stay beside their rows of inputs
        result = stream("power", file, "--gaps", "skip", *options)
        np.testing.assert_allclose(table(result)[1], wanted, **TOLERANCE)
        assert result.stdout.splitlines()[5:7] == [",", ","]
    assert stream("power", file, "--gaps", "skip", "--out", tmp_path / "y.npy").exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, **TOLERANCE)
    rows = stream("power", file, "--gaps", "skip", "--format", "jsonl").stdout.splitlines()
    assert json.loads(rows[4]) == {"load": None, "sun": None}

    file.write_text("load,wind,sun\n,1,2\n")
    assert (
        "no value yet that --gaps forward could repeat" in stream("power", file, "--gaps", "forward").stderr
    )


def test_a_gap_that_the_server_does_not_take_is_named_with_the_ways_on(
    served: ServerProcess, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(gappy()[0])
    done = CliRunner().invoke(app, ["stream", "lstm", str(file), "--target", served.target])
    assert done.exit_code == 2
    assert "rows.csv:4: column x_1: there is no value" in done.stderr
    for way in ("--gaps forward", "--gaps skip", "--non-finite allow"):
        assert way in done.stderr
    assert len(done.stdout.splitlines()) == 3  # the header and the two steps before


@pytest.mark.parametrize(
    ("encoding", "separator", "decimal"),
    [
        ("utf-8-sig", ",", "."),
        ("utf-16", "\t", "."),
        ("utf-8", ";", ","),
        ("utf-8-sig", ";", "."),
        ("utf-8", "|", "."),
    ],
)
def test_encodings_and_separators_are_found(
    stream: Any, tmp_path: Path, y: Any, encoding: str, separator: str, decimal: str
) -> None:
    columns = [[str(value).replace(".", decimal) for value in column] for column in X.T]
    data = text_of(NAMES, columns, separator).encode(encoding)
    (tmp_path / "power.csv").write_bytes(data)
    (tmp_path / "power.csv.gz").write_bytes(gzip.compress(data))
    for name in ("power.csv", "power.csv.gz"):
        np.testing.assert_allclose(table(stream("power", tmp_path / name))[1], y, **TOLERANCE)
    np.testing.assert_allclose(table(stream("power", "-", text=data))[1], y, **TOLERANCE)


def test_another_encoding_is_named_with_the_way_on(stream: Any, tmp_path: Path) -> None:
    file = tmp_path / "power.csv"
    file.write_bytes("load,wind,sun,Größe\n1,2,3,4\n".encode("latin-1"))
    result = stream("power", file)
    assert result.exit_code == 2
    assert "power.csv:1: not CSV or JSON in UTF-8" in result.stderr
    assert "iconv" in result.stderr


def test_formats(stream: Any, tmp_path: Path, y: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    rows = [
        json.loads(line)
        for line in stream("power", tmp_path / "x.npy", "--format", "jsonl").stdout.splitlines()
    ]
    assert list(rows[0]) == ["load", "sun"]
    np.testing.assert_allclose([list(row.values()) for row in rows], y, **TOLERANCE)
    array = stream("power", tmp_path / "x.npy", "--format", "npy").stdout_bytes
    np.testing.assert_allclose(np.load(io.BytesIO(array)), y, **TOLERANCE)
    stream("power", tmp_path / "x.npy", "--out", tmp_path / "y.jsonl")
    assert [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()] == rows


def test_json_lines_are_read_by_name_and_by_position(stream: Any, y: Any) -> None:
    by_name = [
        dict(zip(["sun", "load", "more", "wind"], [a[2], a[0], 5, a[1]], strict=True)) for a in X.tolist()
    ]
    for rows in (by_name, X.tolist(), [{"x": row} for row in X.tolist()]):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        np.testing.assert_allclose(table(stream("power", "-", text=text))[1], y, **TOLERANCE)
    for text, complaint in (
        (
            '{"load": 1, "wind": 2}\n',
            "<stdin>:1: expected the keys load, wind, sun, or x with lists; got load, wind",
        ),
        ("[1, 2]\n", "<stdin>:1: expected 3 values (load, wind, sun), got 2"),
        ("[1, 2, 3]\n[1,\n", "<stdin>:2: not JSON"),
        ('[1, 2, "3 m"]\n', "<stdin>:1: column sun: expected a number, got '3 m'"),
    ):
        result = stream("power", "-", text=text)
        assert (result.exit_code, complaint in result.stderr) == (2, True), result.stderr


def shell(command: str, server: ServerProcess) -> subprocess.CompletedProcess[bytes]:
    program = f"{sys.executable} -m streamcell.cli stream --target {server.target}"
    return subprocess.run(
        ["bash", "-c", command.replace("STREAM", program)], capture_output=True, timeout=120, check=True
    )


def test_pipes_are_read_whatever_they_carry(server: ServerProcess, tmp_path: Path, y: Any) -> None:
    (tmp_path / "power.csv").write_text(text_of(NAMES, list(X.T)))
    np.save(tmp_path / "x.npy", X)
    for command in (
        f"STREAM power <(cat {tmp_path}/power.csv) --format npy",
        f"STREAM power /dev/stdin --format npy < {tmp_path}/power.csv",
        f"cat {tmp_path}/x.npy | STREAM power - --format npy",
        f"STREAM power <(gzip -c {tmp_path}/x.npy) --format npy",
    ):
        np.testing.assert_allclose(np.load(io.BytesIO(shell(command, server).stdout)), y, **TOLERANCE)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--seed", 1), "need --generate"),
        (("--resume", "r", "--gaps", "skip"), "--resume goes with neither"),
        (("--separator", "::"), "--separator: expected one character"),
        (("--format", "xml"), "'csv', 'jsonl', 'npy'"),
    ],
)
def test_options_that_do_not_go_are_refused(stream: Any, options: tuple[object, ...], complaint: str) -> None:
    result = stream("power", "-", *options, text="")
    assert result.exit_code == 2
    assert complaint in result.stderr
