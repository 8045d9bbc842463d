"""The commands that speak to a running server: what they print, their exit codes, and that errors name the remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from streamcell.cli import app
from streamcell.cli.main import OPERATE
from streamcell.client import ServerDraining, Unavailable, connect
from streamcell.client.local_server import ServerProcess
from tests.support.onnx_files import parsed, save
from tests.support.ports import free_port

GRAPH = (
    "(float[n,2] x, float[n,2] h) => (float[n,2] y, float[n,2] h_next) { y = Neg(x) h_next = Identity(h) }"
)
BAD = "(float[n,2] x, float[n,2] h) => (float[n,2] y, float[n,2] h_next) { y = Nonsense(x) h_next = Neg(h) }"
ONE = ("--model-control", "explicit", "--load-model", "one")
ARGUMENTS = {"close": ("0123456789abcdef",), "load": ("one",), "unload": ("one",)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        save(parsed(GRAPH), models / f"{name}.onnx")
    save(parsed(BAD), models / "bad.onnx")
    return models


@pytest.fixture(scope="module")
def server(start_server: Callable[..., ServerProcess], models: Path) -> ServerProcess:
    return start_server(models, *ONE, "--replica", "a", "--advertise", "10.0.0.7:8500")


def streamcell(*arguments: str | Path) -> Result:
    """The command in this process: a process of its own takes a second to import what it needs."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def told(server: ServerProcess, *arguments: str | Path) -> str:
    done = streamcell(*arguments, "--target", server.target)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_an_operator_sees_what_is_served_and_who_is_on_it(server: ServerProcess) -> None:
    with connect(server.target) as client, client.session("one") as session:
        session.step(np.zeros(2, np.float32))
        found = json.loads(told(server, "status", "--json"))
        assert found["ready"] is True
        assert [(each["name"], each["sessions"]) for each in found["models"]] == [("one", {"active": 1})]
        lines = told(server, "status").splitlines()
        assert lines[:2] == [f"{server.target}: ready", "replica a at 10.0.0.7:8500, no store"]
        assert found["replica"] == {"name": "a", "address": "10.0.0.7:8500", "store": "", "lease_s": 0.0}
        assert lines[3].split() == ["one", "1", "onnx", "1", "active"]
        (listed,) = map(json.loads, told(server, "sessions", "--json").splitlines())
        assert (listed["id"], listed["step_index"]) == (session.id, 1)
        assert session.id in told(server, "sessions", "one")
        assert f"closed {session.id} after 1 timesteps" in told(server, "close", session.id)
        assert told(server, "sessions", "--json") == ""


def test_an_operator_loads_and_unloads(server: ServerProcess) -> None:
    index = json.loads(told(server, "models", "--json"))
    assert {each["name"]: each["state"] for each in index} == {"bad": "", "one": "READY", "two": ""}
    assert told(server, "load", "two") == "serving two 1\n"
    assert "two" in told(server, "status")
    assert json.loads(told(server, "unload", "two", "--json")) == {"model": "two"}
    failed = streamcell("load", "bad", "--target", server.target)
    assert failed.exit_code == 1
    assert "[MODEL_LOAD_FAILED]\n  what was served before is still served" in failed.stderr
    rows = told(server, "models").splitlines()
    assert "UNAVAILABLE" in next(row for row in rows if row.startswith("bad"))
    assert "Nonsense" in told(server, "models")


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("close", "0123456789abcdef"), "[SESSION_NOT_FOUND]\n  `streamcell sessions` lists"),
        (("load", "three"), "[MODEL_NOT_FOUND]\n  `streamcell models` lists"),
        (("unload", "three"), "[MODEL_NOT_FOUND]\n  `streamcell models` lists"),
        (("sessions", "three"), "[MODEL_NOT_FOUND]\n  `streamcell models` lists"),
    ],
)
def test_an_error_names_the_remedy(arguments: tuple[str, ...], remedy: str, server: ServerProcess) -> None:
    done = streamcell(*arguments, "--target", server.target)
    assert (done.exit_code, done.stdout) == (1, "")
    assert remedy in done.stderr


@pytest.mark.conformance
def test_a_server_that_is_drained_ends_as_after_sigterm(
    start_server: Callable[..., ServerProcess], models: Path, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    server = start_server(models, *ONE, "--remote-drain", "--grace-s", "60")
    with connect(server.target) as client, client.session("one") as session:
        session.step(np.zeros(2, np.float32))
        found = json.loads(told(server, "drain", "--json"))
        assert found == {"live_sessions": 1, "grace_s": 60.0}

        def refused() -> bool:
            try:
                client.session("one").close()
            except (ServerDraining, Unavailable):
                return True
            return False

        assert eventually(refused)  # as after SIGTERM, not from the answer on
        session.step(np.zeros(2, np.float32))  # live ones go on
    assert server.process.wait(60) == 0


def test_a_server_without_remote_drain_goes_on(served: ServerProcess) -> None:
    done = streamcell("drain", "--target", served.target)
    assert done.exit_code == 1
    assert "[DRAIN_OFF]\n  start the server with --remote-drain" in done.stderr
    assert json.loads(told(served, "status", "--json"))["ready"] is True


def test_a_server_without_a_store_has_nowhere_to_move_sessions(served: ServerProcess) -> None:
    done = streamcell("drain", "--fraction", "0.5", "--target", served.target)
    assert done.exit_code == 1
    assert "[NO_STORE]\n  start all replicas with the same --store" in done.stderr


@pytest.mark.parametrize("fraction", ["0", "-0.5", "1.01", "nan"])
def test_a_part_of_the_sessions_is_above_0_and_at_most_1(served: ServerProcess, fraction: str) -> None:
    done = streamcell("drain", f"--fraction={fraction}", "--target", served.target)
    assert done.exit_code == 1
    assert "above 0 and at most 1 [WRONG_PARAMETER]" in done.stderr


def test_a_server_without_model_control_says_so(served: ServerProcess) -> None:
    done = streamcell("load", "lstm", "--target", served.target)
    assert done.exit_code == 1
    assert "[MODEL_CONTROL_OFF]\n  start the server with --model-control explicit" in done.stderr


@pytest.mark.parametrize("command", OPERATE)
def test_each_says_what_to_do_if_nobody_answers(command: str) -> None:
    done = streamcell(command, *ARGUMENTS.get(command, ()), "--target", f"127.0.0.1:{free_port()}")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "`streamcell serve` starts one" in done.stderr


def test_a_ticket_and_a_token_that_are_none_are_told(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "ticket").write_text("{}")
    done = streamcell("close", "0", "--ticket", tmp_path / "ticket", "--target", server.target)
    assert done.exit_code == 2
    assert "it is no ticket" in done.stderr
    done = streamcell("status", "--bearer-file", tmp_path / "none", "--target", server.target)
    assert done.exit_code == 2
    assert "none: No such file" in done.stderr


@pytest.mark.parametrize("command", [("status",), ("status", "--json"), ("models",)])
def test_a_reader_that_has_gone_is_not_taken_for_the_servers_fault(
    served: ServerProcess, command: tuple[str, ...]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "streamcell.cli", *command, "--target", served.target],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
