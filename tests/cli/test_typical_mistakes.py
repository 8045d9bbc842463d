"""Every command with its typical mistakes: it fails, without a traceback, and its words name the remedy."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.cli.main import COMMANDS
from tests.support.ports import free_port

HELP = r"Try '.* --help' for help"
DEAD = "start one, streamcell serve --models FOLDER"

# The command line, and what its words must say. FREE is a port that nobody listens on, SERVED a server's address.
MISTAKES = [
    ("trian", "Did you mean 'train'"),
    ("train", rf"(?s){HELP}.*Missing argument"),
    ("train nothing --out run", "one of chorales, csv"),
    ("train csv --out run", "--data FILE.csv"),
    ("train csv --out run --data none.csv", "none.csv"),
    ("train csv --out run --data small.csv", "at least 11 are needed"),
    ("train csv --out run --data rows.csv --target load", "it has a, b"),
    ("train digits --out run --set hidden", "expected NAME=VALUE"),
    ("train digits --out run --set hiden=3", "it has .*hidden_sizes"),
    ("train digits --out run --epochs -1", "at least 1"),
    ("train digits --out run --device cuda:99", "train on device cpu"),
    ("train digits --out run --device gpu", "cpu, cuda or cuda:N"),
    ("train digits --out run --resume", "leave --resume out"),
    ("train digits --out run --schedule step", "one of cosine, linear, constant"),
    ("export", HELP),
    ("export none --out m.onnx", "one that streamcell train has written"),
    ("export none.py:make --out m.onnx", "a run folder or FILE.py:FACTORY"),
    ("export net.py:maek --out m.onnx --input x:float32[3]", "it has make, Net"),
    ("export net.py:make --out m.onnx --input x:float32[3]", "net.py:3, in make"),
    ("export net.py:Net --out m.onnx", "for example --input x:float32"),
    ("export net.py:Net --out m.onnx --input y:float32[3]", "it takes x, h"),
    ("export net.py:Net --out m.onnx --input x:float[3]", "use float32"),
    ("export net.py:Net --out m.onnx --input x", "for example x:float32"),
    ("export net.py:Net --out m --input x:float32[3]", "must end in .onnx"),
    ("export net.py:Net --out m.onnx --input x:float32[3]", "return the same form each time"),
    ("export net.py:Net --out m.onnx --input x:float32[3] --precision fp8", "one of fp32, fp16, int8"),
    ("export folder --out m.onnx --input x:float32[3]", "can only be given for FILE.py:FACTORY"),
    ("inspect none.onnx", "name an .onnx file"),
    ("inspect folder", "name a file in it"),
    ("inspect noise.onnx", "export or copy it again"),
    ("serve --models none", "--models names one"),
    ("serve --models folder", "expected NAME.onnx"),
    ("serve --models folder --max-sesions 3", "--max-sessions"),
    ("serve --models folder --config serve.toml", r"serve.toml:2: prot: .*did you mean port\?"),
    ("serve --models folder --tls-cert none.pem", "give both, or neither"),
    ("serve --models folder --durability process", "needs journal_dir"),
    ("serve --models folder --device cuda:99", "device cuda:99: "),
    ("stream lstm", HELP),
    ("stream lstm none.csv --target SERVED", "see the path's spelling"),
    ("stream lstm folder --target SERVED", "it is a folder: name a file"),
    ("stream lsmt rows.csv --target SERVED", "streamcell models.*lists"),
    ("stream lstm rows.csv --target SERVED", "the model takes x_0, x_1, x_2"),
    ("stream lstm rows.csv --target localhost:FREE", DEAD),
    ("stream lstm rows.csv --target http://localhost:8500", r'leave "http://" out'),
    ("stream lstm rows.csv --target SERVED --seed 1", "need --generate"),
    ("stream lstm rows.csv --target SERVED --tls-roots none.pem", "see the path's spelling"),
    ("sign", HELP),
    ("sign noise.onnx", "Missing option '--key'"),
    ("sign noise.onnx --key none.pem", "none.pem"),
    ("token", rf"(?s){HELP}.*Missing argument 'tenant'"),
    ("token plant", "Missing argument 'subject'"),
    ("status --target localhost:FREE", DEAD),
    ("status --target SERVED --tls", "leave tls out"),
    ("models --target nowhere.invalid", "see the target's spelling"),
    ("sessions --target SERVED --tls-roots none.pem", "none.pem"),
    ("close abc --target SERVED", "streamcell sessions.*lists the live ones"),
    ("load lstm --target SERVED", "--model-control explicit"),
    ("unload lstm --target SERVED", "--model-control explicit"),
    ("drain --target SERVED", "--remote-drain"),
    ("demo nothing", "the demos are digits"),
    ("demo digits --out small.csv", "name another place"),
    ("demo digits --sessions 0", "greater than or equal to 1"),
]

# These redirect their process's standard error for good.
APART = ("inspect", "serve")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command lines name."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "folder").mkdir()
    (folder / "small.csv").write_text("a,b\n1,2\n2,3\n")
    (folder / "rows.csv").write_text("a,b\n" + "1,2\n" * 40)
    (folder / "noise.onnx").write_text("noise")
    (folder / "serve.toml").write_text("host = '127.0.0.1'\nprot = 8500\n")
    (folder / "net.py").write_text(
        "import torch\ndef make():\n    raise RuntimeError('no weights')\n"
        "class Net(torch.nn.Module):\n    def forward(self, x, h=None):\n        return x, h\n"
    )
    return folder


@pytest.mark.parametrize(("line", "remedy"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_told_with_its_remedy(
    line: str, remedy: str, folder: Path, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    arguments = shlex.split(line.replace("FREE", str(free_port())).replace("SERVED", served.target))
    if arguments[0] in APART:
        command = [sys.executable, "-m", "streamcell.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        code, told = done.returncode, done.stdout + done.stderr
    else:
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, SystemExit), result.exc_info
        code, told = result.exit_code, result.output
    assert code in (1, 2)
    assert "Traceback" not in told
    assert re.search(remedy, " ".join(told.split())), told


def test_every_command_is_walked() -> None:
    assert set(COMMANDS) <= {line.split()[0] for line, _ in MISTAKES}
