"""`streamcell stream`: rows in, rows out, live where they come live, and no traceback for anybody's mistake."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from streamcell.cli import app
from streamcell.client.local_server import ServerProcess

Modules = dict[str, torch.nn.Module]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
X = np.random.default_rng(5).standard_normal((23, 3), dtype=np.float32)


@pytest.fixture
def stream(served: ServerProcess) -> Any:
    def run(*arguments: object, text: str | None = None) -> Result:
        command = ["stream", "--target", served.target, *map(str, arguments)]
        return CliRunner().invoke(app, command, input=text)

    return run


@pytest.fixture
def expected(modules: Modules) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        y: np.ndarray[Any, Any] = modules["lstm"](torch.from_numpy(X[None]))[0][0].numpy()
    return y


def as_csv(x: np.ndarray[Any, Any], header: str = "") -> str:
    return header + "".join(",".join(map(str, row)) + "\n" for row in x)


def table(text: str) -> np.ndarray[Any, Any]:
    names, *rows = csv.reader(io.StringIO(text))
    assert names == ["y_0", "y_1"]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("header", ["", "left,middle,right\n"])
@pytest.mark.parametrize("options", [(), ("--chunk", 5), ("--chunk", 100, "--window", 1)])
def test_csv_rows_give_csv_rows(
    stream: Any, tmp_path: Path, expected: np.ndarray[Any, Any], header: str, options: tuple[object, ...]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(as_csv(X, header) + "\n")
    result = stream("lstm", file, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    np.testing.assert_allclose(table(result.stdout), expected, **TOLERANCE)


def test_npy_in_and_npy_npz_and_csv_out(stream: Any, tmp_path: Path, expected: np.ndarray[Any, Any]) -> None:
    np.save(tmp_path / "x.npy", X)
    for name in ("y.npy", "y.npz", "y.csv"):
        result = stream("lstm", tmp_path / "x.npy", "--chunk", 4, "--out", tmp_path / name)
        assert result.exit_code == 0
        assert result.stdout == ""
        assert result.stderr.startswith("23 timesteps through lstm in ")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, **TOLERANCE)
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], expected, **TOLERANCE)
    np.testing.assert_allclose(table((tmp_path / "y.csv").read_text()), expected, **TOLERANCE)


def test_output_modes(stream: Any, tmp_path: Path, expected: np.ndarray[Any, Any]) -> None:
    np.save(tmp_path / "x.npy", X)
    last = stream("lstm", tmp_path / "x.npy", "--chunk", 5, "--output-mode", "last", "--no-header")
    rows = np.loadtxt(io.StringIO(last.stdout), delimiter=",")
    np.testing.assert_allclose(rows, expected[[4, 9, 14, 19, 22]], **TOLERANCE)
    none = stream("lstm", tmp_path / "x.npy", "--output-mode", "none")
    assert none.stdout == ""
    assert "23 timesteps" in none.stderr
    stream("lstm", tmp_path / "x.npy", "--output-mode", "none", "--out", tmp_path / "none.npy")
    assert np.load(tmp_path / "none.npy").shape == (0, 2)


def test_rows_from_standard_input_are_answered_as_they_come(
    served: ServerProcess, expected: np.ndarray[Any, Any]
) -> None:
    command = [sys.executable, "-m", "streamcell.cli", "stream", "lstm", "-", "--target", served.target]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("a,b,c\n")
        for t, row in enumerate(X[:4]):
            process.stdin.write(as_csv(row[None]))
            if t == 0:
                assert process.stdout.readline() == "y_0,y_1\n"
            answer = np.array(process.stdout.readline().split(","), np.float32)  # before the next row is sent
            np.testing.assert_allclose(answer, expected[t], **TOLERANCE)
        process.stdin.close()
        assert process.stdout.read() == ""
        assert process.wait(60) == 0


def test_a_reader_that_has_had_enough_is_no_error_to_shout_about(
    served: ServerProcess, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.tile(X, (1000, 1)))  # far more than a pipe holds
    command = [sys.executable, "-m", "streamcell.cli", "stream", "lstm", tmp_path / "x.npy"]
    with subprocess.Popen(
        [*command, "--target", served.target, "--chunk", "50"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1,2,3\n1,2\n", "rows.csv:2: expected 3 columns, got 2"),
        ("a,b,c\n1,2,3\n1,two,3\n", "rows.csv:3: column x_1: expected a number, got 'two'"),
        ("", "rows.csv: expected at least one row, got none"),
        ("1,2,nan\n", "expected finite values, got nan"),
        ("1,2,\x00\n", "rows.csv:1: "),
        ("\udcff1,2,3\n", "not CSV"),
    ],
)
def test_bad_rows_are_named(stream: Any, tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    result = stream("lstm", file)
    assert result.exit_code == 2
    assert result.stderr.startswith("streamcell stream: ")
    assert complaint in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_the_rows_before_a_bad_one_are_answered(
    stream: Any, tmp_path: Path, expected: np.ndarray[Any, Any]
) -> None:
    (tmp_path / "rows.csv").write_text(as_csv(X) + "oops\n")
    result = stream("lstm", tmp_path / "rows.csv")
    assert (result.exit_code, "rows.csv:24" in result.stderr) == (2, True)
    np.testing.assert_allclose(table(result.stdout), expected, **TOLERANCE)


def test_a_bad_array_is_named(stream: Any, tmp_path: Path) -> None:
    for array, complaint in (
        (np.zeros((4, 2), np.float32), "expected an array [T, 3], got [4, 2]"),
        (np.zeros((4, 3)), "expected float32, got float64"),
        (np.array([{}]), "Python objects"),
        (np.float32(1), "expected an array [T, 3], got []"),
    ):
        np.save(tmp_path / "x.npy", array)
        result = stream("lstm", tmp_path / "x.npy")
        assert result.exit_code == 2
        assert complaint in result.stderr


def test_whatever_is_not_there_is_named(stream: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(as_csv(X))
    for arguments, code, complaint in (
        (("lsmt", file), 1, "[MODEL_NOT_FOUND]"),
        (("lstm", file, "--version", "9"), 1, "[VERSION_NOT_FOUND]"),
        (("lstm", tmp_path / "no.csv"), 2, "no.csv: No such file"),
        (("lstm", file, "--target", "127.0.0.1:1"), 1, "[UNAVAILABLE]"),
        (("lstm", file, "--tls-roots", tmp_path / "no.pem"), 2, "no.pem: No such file"),
        (("lstm", file, "--out", tmp_path / "no" / "y.csv"), 2, "y.csv: No such file"),
        (("lstm", file, "--chunk", 0), 2, "--chunk"),
    ):
        result = stream(*arguments)
        assert (result.exit_code, complaint in result.stderr) == (code, True), result.stderr
        assert isinstance(result.exception, SystemExit)


def test_a_command_that_is_killed_goes_on_where_it_stopped(
    served: ServerProcess, stream: Any, tmp_path: Path, expected: np.ndarray[Any, Any]
) -> None:
    np.save(tmp_path / "x.npy", X)
    ticket = tmp_path / "ticket"
    arguments = ["--resume", str(ticket), "--window", "4", "--target", served.target]
    command = [sys.executable, "-m", "streamcell.cli", "stream", "lstm"]
    with subprocess.Popen(
        [*command, "-", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(as_csv(X[:8]))
        printed = [
            process.stdout.readline() for _ in range(5)
        ]  # the names and four rows; others are on their way
        process.kill()
        printed += process.stdout.read().splitlines(keepends=True)
    assert ticket.stat().st_mode & 0o777 == 0o600
    rest = stream("lstm", tmp_path / "x.npy", "--resume", ticket, "--window", 4)
    assert (rest.exit_code, rest.stderr) == (0, "")
    # Between a row's being printed and its being noted the command may have died: then the row comes again.
    rows = list(csv.reader(printed[1:])) + list(csv.reader(io.StringIO(rest.stdout)))
    again = len(rows) - len(X)
    assert again in (0, 1)
    place = len(printed) - 1
    np.testing.assert_allclose(
        np.array(rows[:place] + rows[place + again :], np.float32), expected, **TOLERANCE
    )
    assert not ticket.exists()


def test_a_level_of_durability_needs_a_session_that_can_be_found_again(stream: Any, tmp_path: Path) -> None:
    x = tmp_path / "x.npy"
    np.save(x, np.zeros((2, 3), np.float32))
    refused = stream("lstm", x, "--durability", "none")
    assert refused.exit_code == 2
    assert "--durability needs --resume FILE" in refused.stderr
    ticket = tmp_path / "ticket"
    assert stream("lstm", x, "--resume", ticket, "--durability", "none").exit_code == 0
    lacking = stream("lstm", x, "--resume", ticket, "--durability", "store-async")
    assert lacking.exit_code == 1
    assert "DURABILITY_UNSUPPORTED" in lacking.stderr


def test_what_cannot_be_resumed_is_told(stream: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    ticket = tmp_path / "ticket"
    ticket.write_text("{}")
    result = stream("lstm", tmp_path / "x.npy", "--resume", ticket)
    assert result.exit_code == 2
    assert "expected what an earlier --resume has written" in result.stderr
    result = stream("lstm", tmp_path / "x.npy", "--resume", ticket, "--generate", 3)
    assert result.exit_code == 2
    unknown = {"session": "00" * 16, "token": "00" * 32, "received": 1, "received_steps": 0, "attempt": 1}
    ticket.write_text(json.dumps({**unknown, "chunk": 2}))
    assert "begun with --chunk 2, got 1" in stream("lstm", tmp_path / "x.npy", "--resume", ticket).stderr
    result = stream("lstm", tmp_path / "x.npy", "--resume", ticket, "--chunk", 2)
    assert result.exit_code == 1
    assert "SESSION_NOT_FOUND" in result.stderr


def test_a_server_that_asks_who_calls_gets_the_token_of_a_file(
    start_server: Any, models_dir: Path, tmp_path: Path
) -> None:
    made = CliRunner().invoke(app, ["token", "plant", "feed"]).stdout
    token, _, lines = made.partition("\n")
    (tmp_path / "tokens.toml").write_text(lines)
    (tmp_path / "token").write_text(token + "\n")
    np.save(tmp_path / "x.npy", X)
    server = start_server(models_dir, "--token-file", str(tmp_path / "tokens.toml"))
    command = ["stream", "lstm", str(tmp_path / "x.npy"), "--target", server.target]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert "--bearer-file FILE" in refused.stderr
    done = CliRunner().invoke(app, [*command, "--bearer-file", str(tmp_path / "token")])
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 1 + len(X))
