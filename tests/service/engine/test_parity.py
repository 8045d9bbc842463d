"""The CPU against a card or, without one, against itself by the card's path: memory apart, fixed shapes, graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamcell.benchmarks.parity import compare, engine
from streamcell.export import export_model
from streamcell.models import build
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Cell
from streamcell.service.load_errors import DeviceError
from streamcell.service.repository.model_file import ModelFile, open_model


def other() -> Device:
    try:
        Device("cuda").check()
    except DeviceError:
        return Device(apart=True)
    return Device("cuda")


OTHER = other()
RECURRENT: dict[str, Any] = {"input_size": 3, "hidden_size": 24, "output_size": 2, "num_layers": 2}
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm", **RECURRENT},
    "gru": {"kind": "gru", **RECURRENT, "reset_after": True},
    "gru, reset before": {"kind": "gru", **RECURRENT, "reset_after": False},
    "rnn": {"kind": "rnn", **RECURRENT},
    "one layer": {"kind": "lstm", **RECURRENT, "num_layers": 1},
    # Of its tokens 0 is the encoder's and 1 the decoder's.
    "seq2seq": {"kind": "seq2seq", **RECURRENT},
    "mlp": {"kind": "mlp", "input_size": 3, "hidden_sizes": [16], "output_size": 2},
    "voices": {"kind": "lstm", **RECURRENT, "voices": 3, "distribution": "bernoulli_logits"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFile]:
    folder = tmp_path_factory.mktemp("parity")
    torch.manual_seed(4)
    found = {}
    for number, (kind, config) in enumerate(KINDS.items()):
        path: Path = folder / f"model{number}.onnx"
        export_model(build(config).eval(), path, name=path.stem)
        found[kind] = open_model(path, path.stem)
    return found


@pytest.mark.parametrize("cell", ["operator", "decomposed", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_devices_give_the_same(files: dict[str, ModelFile], kind: str, cell: Cell) -> None:
    found = compare(engine(files[kind], Device()), engine(files[kind], OTHER, cell=cell, cuda_graphs=True))
    assert found.runs == 60
    assert found.steps > 500
    assert found.output_error < 1e-5
    assert found.state_error < 1e-5


def test_the_comparison_sees_a_difference(files: dict[str, ModelFile]) -> None:
    one, other = engine(files["lstm"], Device()), engine(files["one layer"], OTHER)
    found = compare(one, engine(files["lstm"], OTHER))
    assert found.output_error < 1e-5
    other.pool = one.pool  # states of another model's shape are not compared
    assert compare(one, other).output_error > 1e-3
