"""`streamcell train` from the shell: a run, an error, and Ctrl-C with --resume in a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.models import load_run
from streamcell.models.training import presets

# A shell that runs the tests in the background has them ignore SIGINT, and children inherit that.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from streamcell.cli import main; main()"
)


EPOCHS = 80  # three seconds, in which a process that is interrupted after three of them has not ended


@pytest.fixture
def table(tmp_path: Path) -> Path:
    t = np.arange(300)
    path = tmp_path / "wave.csv"
    values = np.stack([np.sin(t / 5), np.cos(t / 5)], axis=1)
    np.savetxt(path, values, delimiter=",", header="wave,phase", comments="")
    return path


def arguments(table: Path, out: Path, *more: str) -> list[str]:
    fixed = "train csv --target wave --model gru --set reset_after=true --hidden 8 --threads 1 --patience 0 --epochs"
    return [*fixed.split(), str(EPOCHS), "--data", str(table), "--out", str(out), *more]


def test_a_run_from_the_command_line(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = CliRunner().invoke(app, arguments(table, out, "--minutes", "0.01"))
    assert done.exit_code == 0, done.output
    assert "test loss" in done.output
    model, document = load_run(out)
    assert model.config["kind"] == "gru"
    assert model.config["reset_after"] is True
    assert model.config["hidden_size"] == 8
    assert document["training"]["minutes"] == 0.01
    assert document["data"]["targets"] == ["wave"]


def test_settings_of_a_kind_are_given_as_words_numbers_and_lists(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = arguments(table, out, "--model", "tcn", "--layers", "2", "--epochs", "2")
    asked = [word for word in asked if word not in ("--set", "reset_after=true")]
    asked += ["--set", "kernel_size=2", "--set", "batch_norm=true", "--set", "activation=gelu"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    config = load_run(out)[0].config
    told = {"kind": "tcn", "channels": [8, 8], "kernel_size": 2, "batch_norm": True, "activation": "gelu"}
    assert config | told == config
    done = CliRunner().invoke(app, [*asked, "--set", "channels=[4, 6, 8]", "--overwrite"])
    assert done.exit_code == 0, done.output
    assert load_run(out)[0].config["channels"] == [4, 6, 8]
    exported = CliRunner().invoke(app, ["export", str(out), "--out", str(tmp_path / "m.onnx")])
    assert exported.exit_code == 0, exported.output


def test_presets_give_what_is_not_said() -> None:
    assert presets.model("digits") == presets.DIGITS.model
    assert presets.model("digits", hidden=32) == {**presets.DIGITS.model, "hidden_sizes": [32, 32]}
    assert presets.model("vowels", layers=2) == {**presets.VOWELS.model, "num_layers": 2}
    assert presets.model("vowels", "lstm", layers=2) == {
        "kind": "lstm",
        "hidden_size": 64,
        "num_layers": 2,
        "dropout": 0.3,
    }
    assert presets.model("chorales", "tcn")["channels"] == [64] * 4
    assert presets.model("chorales", "mlp", dropout=0.0) == {
        "kind": "mlp",
        "hidden_sizes": [256],
        "dropout": 0.0,
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "nothing"], "has no column nothing"),
        (["--device", "tpu"], "device must be cpu, cuda or cuda:N"),
        (["--model", "esn"], "kind must be one of"),
        (["--set", "candidate=relu"], "gru has no setting candidate"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_bad_input_is_told_and_leaves_no_run(
    table: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, arguments(table, tmp_path / "run", *more))
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "run").exists()


def test_brackets_in_an_error_are_shown(tmp_path: Path) -> None:
    (tmp_path / "jsb.json").write_text("{}")
    asked = ["train", "chorales", "--data", str(tmp_path / "jsb.json"), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2
    assert '{"train": [[[midi notes], …], …]' in " ".join(done.output.split())


def test_ctrl_c_keeps_what_is_done_and_resume_ends_the_same(table: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-c", INTERRUPTIBLE]
    process = subprocess.Popen([*command, *arguments(table, broken)], stderr=subprocess.PIPE, text=True)
    metrics = broken / "metrics.csv"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 4:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "training has not come to its third epoch"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "--resume" in told
    done = len(metrics.read_text().splitlines()) - 1
    assert 3 <= done < EPOCHS

    assert CliRunner().invoke(app, arguments(table, broken, "--resume")).exit_code == 0
    assert CliRunner().invoke(app, arguments(table, whole)).exit_code == 0
    assert len(metrics.read_text().splitlines()) == EPOCHS + 1
    weights = [safetensors.torch.load_file(folder / "weights.safetensors") for folder in (broken, whole)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
