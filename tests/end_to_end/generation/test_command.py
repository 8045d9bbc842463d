"""`streamcell stream --generate`: rows in, and the rows that the server goes on with out."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from streamcell.cli import app
from streamcell.client import Client
from streamcell.client.local_server import ServerProcess

KEYS, CLASSES, GO, END = 12, 9, 11, 0


@pytest.fixture
def stream(server: ServerProcess) -> Any:
    def run(*arguments: object, text: str | None = None) -> Result:
        command = ["stream", "--target", server.target, *map(str, arguments)]
        return CliRunner().invoke(app, command, input=text)

    return run


def table(text: str) -> tuple[list[str], Any]:
    names, *rows = csv.reader(io.StringIO(text))
    return names, np.array(rows, np.float32)


def test_rows_give_the_rows_that_follow(stream: Any, client: Client, tmp_path: Path) -> None:
    x = (np.random.default_rng(0).random((6, KEYS)) < 0.3).astype(np.float32)
    (tmp_path / "bars.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in x))
    for options, settings in (
        ((), {}),
        (("--seed", 4), {"seed": 4}),
        (("--temperature", 2, "--top-k", 3, "--seed", 9), {"temperature": 2.0, "top_k": 3, "seed": 9}),
    ):
        result = stream("chords", tmp_path / "bars.csv", "--generate", 20, *options)
        assert result.exit_code == 0, result.stderr
        names, rows = table(result.stdout)
        assert names == [f"x_{key}" for key in range(KEYS)]
        with client.session("chords") as session:
            session.run(x)
            np.testing.assert_array_equal(rows, session.generate(20, **settings).all().fed)


def test_values_tokens_and_files(stream: Any, client: Client, tmp_path: Path) -> None:
    result = stream("waves", "-", "--generate", 5, "--out", tmp_path / "more.npy", text="1,2,3\n")
    assert result.exit_code == 0, result.stderr
    assert "6 timesteps through waves" in result.stderr
    with client.session("waves") as session:
        session.step(np.array([1, 2, 3], np.float32))
        np.testing.assert_array_equal(np.load(tmp_path / "more.npy"), session.generate(5).all().fed)
    result = stream("spell", "-", "--generate", 12, "--no-header", text="3\n4\n5\n")
    tokens = [int(line) for line in result.stdout.splitlines()]
    assert tokens[0] == GO
    assert GO + END not in tokens[1:]


def test_mistakes_are_told(stream: Any) -> None:
    result = stream("chords", "-", "--seed", 3, text="")
    assert (result.exit_code, result.stderr) == (
        2,
        "streamcell stream: --temperature, --top-k and --seed need --generate N, the number of timesteps\n",
    )
    result = stream("mute", "-", "--generate", 3, text="1,2,3\n")
    assert (result.exit_code, "[GENERATION_UNSUPPORTED]" in result.stderr) == (1, True)
    result = stream("words", "-", "--generate", 3, text="")
    assert (result.exit_code, "at least one row" in result.stderr) == (2, True), result.stderr
