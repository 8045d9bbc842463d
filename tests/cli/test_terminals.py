"""What the command line looks like: help that fits 80 columns, and colours on terminals alone."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from streamcell.cli.main import COMMANDS, app

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_cuts_no_name(command: str) -> None:
    done = CliRunner().invoke(
        app, [*command.split(), "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}
    )
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    group = typer.main.get_command(app)
    params = group.commands[command].params if command else []  # type: ignore[attr-defined]
    words = set(re.findall(r"--?[\w-]+", done.stdout))
    for each in params:
        if each.param_type_name == "option":
            assert {*each.opts, *each.secondary_opts} <= words, each.name
    assert set(COMMANDS) <= set(done.stdout.split()) or command


def on_terminal(command: list[str | Path], **environment: str) -> str:
    """What a command prints if standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    env = {**plain, "TERM": "xterm-256color", **environment}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        printed = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            printed += part
    os.close(ours)
    return printed.decode()


LOG = """
import structlog
from streamcell.service import configure_logs
configure_logs("info", "console")
structlog.get_logger().warning("said", number=5)
"""
PRINTING: dict[str, list[str | Path]] = {
    "demo": [sys.executable, "-m", "streamcell.cli", "demo", "--list"],
    "serve": [sys.executable, "-c", LOG],
}


@pytest.mark.parametrize("name", PRINTING)
def test_colours_are_for_terminals_and_not_where_no_color_is_set(name: str, tmp_path: Path) -> None:
    command = PRINTING[name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "\x1b" not in done.stdout + done.stderr
    assert (done.stdout + done.stderr).strip()
    if name != "demo":  # which prints bold letters alone
        assert COLOUR.search(on_terminal(command))
    assert not COLOUR.search(on_terminal(command, NO_COLOR="1"))
