"""`streamcell export`, and export_run and load_module under it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import typer
from typer.testing import CliRunner

from streamcell.card import ModelCard, read_card
from streamcell.cli.commands.export import command
from streamcell.export import ExportError, SpecError, export_run, load_module
from streamcell.models import build
from streamcell.models.training.run_folder import save_config, save_weights

SOURCE = '''
import torch
from torch import nn
from helper import HIDDEN
from streamcell.models import build


class Echo(nn.Module):
    """y_t = W x_t + h, h' = x_t summed."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, HIDDEN)

    def initial_state(self, batch):
        return (torch.zeros(batch, 1),)

    def forward(self, x, h):
        total = h + x.sum(-1).cumsum(1)
        return self.out(x) + total.unsqueeze(-1), total[:, -1:]


def ours():
    return build({"kind": "gru", "input_size": 4, "hidden_size": 8, "output_size": 2})


def nothing():
    return 3


def broken():
    return Echo(3)


def leave():
    raise SystemExit("not today")


class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 8, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


class Raises(Echo):
    def forward(self, x, h):
        return x.no_such_method(), h


class Mixed(nn.Module):
    """Tokens and a dict of features in, two outputs, a nested state."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4 + 3 + 1, 8, batch_first=True)

    def forward(self, tokens, features, hidden=None):
        x = torch.cat([self.table(tokens), features["audio"], features["gain"].unsqueeze(-1).sqrt()], -1)
        y, hidden = self.rnn(x, hidden)
        return {"logits": y, "loudness": y.mean(-1)}, hidden


NOT_CALLABLE = 1
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("HIDDEN = 6\n")
    (tmp_path / "bad.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "lacking.py").write_text("import no_such_package\n")
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    return file


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "runs" / "tune"
    folder.mkdir(parents=True)
    model = build({"kind": "lstm", "input_size": 4, "hidden_size": 8, "output_size": 2, "num_layers": 2})
    document: dict[str, Any] = {
        "model": model.config,
        "training": {"seed": 1, "epochs": 3, "out": str(folder.resolve()), "files": ["a/b.csv", "/c/d.csv"]},
        "data": {"name": "chorales", "test": 12},
    }
    save_config(folder, document)
    save_weights(folder, model.state_dict())
    return folder


def run(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})


def card_of(path: Path) -> ModelCard:
    card = read_card(onnx.load(path))
    assert card is not None
    return card


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_run_folder_is_exported_with_its_provenance(
    precision: str, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models" / "tune.onnx"
    done = run(run_folder, "--out", out, "--precision", precision)
    assert done.exit_code == 0, done.output
    card = card_of(out)
    assert (card.name, card.kind, card.precision) == ("tune", "lstm", precision)
    assert card.training == {
        "run": "tune",
        "training": {"seed": 1, "epochs": 3, "out": "tune", "files": ["a/b.csv", "d.csv"]},
        "data": {"name": "chorales", "test": 12},
    }
    for check, error in card.proof["errors"].items():
        assert any(check in line and f"{error:.2e}" in line for line in done.output.splitlines())
    assert "max|a-b| / max(1, max|b|)" in done.output


def test_a_users_module_is_exported(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "echo.onnx"
    done = run(f"{source}:Echo", "--out", out, "--input-shape", "4", "--name", "parrot")
    assert done.exit_code == 0, done.output
    card = card_of(out)
    assert (card.name, card.kind, card.signature.layout) == ("parrot", "Echo", "batch")
    assert card.signature.outputs[0].step_shape == (6,)


def test_tokens_dicts_and_bounds_from_the_shell(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixed.onnx"
    inputs = ["tokens:int64", "features.audio:float32[3]", "features.gain:float32=0.5..2"]
    done = run(f"{source}:Mixed", "--out", out, *(part for each in inputs for part in ("--input", each)))
    assert done.exit_code == 0, done.output
    signature = card_of(out).signature
    assert [(t.name, t.dtype, t.step_shape) for t in signature.inputs] == [
        ("tokens", "int64", ()),
        ("features_audio", "float32", (3,)),
        ("features_gain", "float32", ()),
    ]
    assert [(t.name, t.step_shape) for t in signature.outputs] == [("logits", (8,)), ("loudness", ())]
    assert [(s.input, s.shape) for s in signature.states] == [("hidden0", (1, 8)), ("hidden1", (1, 8))]
    assert "features_gain float32[] → logits float32[8], loudness float32[], states: hidden0" in done.output


def test_a_factory_may_give_one_of_our_own_models(source: Path, tmp_path: Path) -> None:
    done = run(f"{source}:ours", "--out", tmp_path / "m.onnx", "--no-lengths")
    assert done.exit_code == 0, done.output
    card = card_of(tmp_path / "m.onnx")
    assert (card.kind, card.signature.lengths) == ("gru", None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["mine.py:Echo"],
            "Echo.forward takes x, h, so for example --input x:float32[32], or --input x:int64",
        ),
        (["mine.py:Echo", "--input", "x"], "--input must be NAME:DTYPE[SIZES]"),
        (["mine.py:Echo", "--input", "x:float31[4]"], "float31 is no dtype; use float32,"),
        (["mine.py:Echo", "--input", "x:float32[0]"], "each size must be at least 1"),
        (
            ["mine.py:Echo", "--input", "x:int64=9..0"],
            "the lowest value comes first, and int64 must hold both",
        ),
        (["mine.py:Echo", "--input", "x:int64=0..1e999"], "and int64 must hold both"),
        (["mine.py:Echo", "--input", "x:uint8=0..300"], "and uint8 must hold both"),
        (["mine.py:Echo", "--input", "x:float16[4]=-1e9..1"], "and float16 must hold both"),
        (["mine.py:Echo", "--input", "x:float32[4"], "--input must be NAME:DTYPE[SIZES]"),
        (["mine.py:Echo", "--input", "z:float32[4]"], "Echo.forward has no parameter 'z'; it takes x, h"),
        (["mine.py:Echo", "--input", "x:float32[4]", "--input", "x:int64"], "--input x is given twice"),
        (["mine.py:Echo", "--input", "x:int64", "--input", "x.y:int64"], "x is an input itself"),
        (["mine.py:Echo", "--input", "x:float32[4]", "--input-shape", "4"], "not both"),
        (["mine.py:broken", "--input-shape", "4"], "broken() fails: "),
        (["mine.py:broken", "--input-shape", "4"], "in broken, 'return Echo(3)': TypeError: "),
        (["mine.py:leave", "--input-shape", "4"], "ends the program: "),
        (
            ["mine.py:Raises", "--input-shape", "4"],
            "in forward, 'return x.no_such_method(), h': AttributeError: ",
        ),
        (["mine.py:Forgetful", "--input-shape", "4"], "LSTM 'rnn' keeps no state between calls: take (h, c)"),
        (["bad.py:Echo", "--input-shape", "4"], "bad.py does not run: "),
        (["bad.py:Echo", "--input-shape", "4"], "bad.py:2, 'def f(:': SyntaxError: "),
        (["lacking.py:Echo", "--input-shape", "4"], "'import no_such_package': ModuleNotFoundError: "),
        (["mine.py:Echo", "--input-shape", "4x"], "must be sizes such as 32 or 3,64; got '4x'"),
        (["mine.py:Echo", "--input-shape", "0"], "each size must be at least 1"),
        (["mine.py:Echo", "--input-shape", "7"], "does not run on x"),
        (["mine.py:Echo", "--input-shape", "4", "--layout", "time"], "--layout must be"),
        (["mine.py:Missing", "--input-shape", "4"], "has no function or class Missing"),
        (["mine.py:NOT_CALLABLE", "--input-shape", "4"], "has no function or class NOT_CALLABLE"),
        (["mine.py:nothing", "--input-shape", "4"], "must return a torch.nn.Module; got a int"),
        (["other.py:Echo", "--input-shape", "4"], "there is no file"),
        (["runs/none"], "config.json cannot be read"),
        (["runs/tune", "--input-shape", "4"], "can only be given for FILE.py:FACTORY"),
        (["runs/tune", "--precision", "fp8"], "precision must be one of"),
        (["runs/tune", "--tolerance", "1e-12"], "tolerance 1e-12"),
    ],
)
def test_what_cannot_be_exported_is_a_line_on_stderr_and_no_file(
    arguments: list[str], text: str, source: Path, run_folder: Path, tmp_path: Path
) -> None:
    done = run(tmp_path / arguments[0], *arguments[1:], "--out", tmp_path / "out" / "m.onnx")
    assert done.exit_code == 1
    assert done.stderr.startswith("streamcell export: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_weights_that_do_not_fit_are_named(run_folder: Path, tmp_path: Path) -> None:
    save_weights(run_folder, {"head.weight": torch.zeros(2, 8)})
    with pytest.raises(ExportError, match="does not fit the model"):
        export_run(run_folder, tmp_path / "m.onnx")


def test_loading_a_file_leaves_the_import_path_as_it_was(source: Path) -> None:
    before = list(sys.path)
    assert type(load_module(f"{source}:Echo")).__name__ == "Echo"
    with pytest.raises(SpecError, match=r"expected FILE\.py:FACTORY"):
        load_module("mine")
    assert sys.path == before
