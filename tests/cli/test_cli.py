"""The command line as a whole: its commands, and what it says where an extra is missing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from streamcell.cli.main import COMMANDS

HIDE = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
sys.argv = ["streamcell", *{arguments!r}]
from streamcell.cli import main
main()
"""


def test_every_command_is_listed() -> None:
    done = subprocess.run([sys.executable, "-m", "streamcell.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout


def test_a_command_imports_no_other() -> None:
    code = (
        "import sys; sys.argv = ['streamcell', 'token', 'plant', 'robot']\n"
        "from streamcell.cli import main\n"
        "try: main()\n"
        "finally: print([name for name in sys.modules if name.startswith('streamcell.cli.commands.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "['streamcell.cli.commands.token']"


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("serve", ["[127.0.0.1]", "[auto]", "[10000]"]),
        ("train", ["[lstm; gru for csv, voice and vowels, mlp for digits]", "[1; 3 for cnn, 4 for tcn]"]),
        ("demo", ["[runs/demo; runs/demo-NAME for NAME]", "[a fixed number of epochs, the same each time]"]),
        ("stream", ["[newest]"]),
    ],
)
def test_help_shows_the_defaults_that_stand_in_brackets(command: str, defaults: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamcell.cli", command, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )
    told = " ".join(done.stdout.split())
    for default in defaults:
        assert default in told


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["serve", "--models", "none"], "onnxruntime", "serve"),
        (["train", "chorales", "--out", "none"], "torch", "train"),
        (["sign", "none.onnx", "--key", "none"], "cryptography", "signed"),
    ],
)
def test_a_command_whose_extra_is_missing_names_it(arguments: list[str], module: str, extra: str) -> None:
    code = HIDE.format(module=module, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr.strip() == f"streamcell: this command needs {module}: pip install 'streamcell[{extra}]'"
    )
