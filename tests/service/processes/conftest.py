"""Engines whose rings are served, made once a module, and front ends with kept streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from streamcell.card import read_card, write_card
from streamcell.export import export_model
from streamcell.models import build
from tests.support.kept_streams import Engines
from tests.support.resumable import save_sum
from tests.support.rings import TOKENS, Rig, Rigs


@pytest.fixture(scope="module")
def all_rigs(models_dir: Path) -> Iterator[Rigs]:
    made: dict[tuple[Any, ...], Rig] = {}

    def make(model: str | Path, **changes: Any) -> Rig:
        path = models_dir / f"{model}.onnx" if isinstance(model, str) else model
        key = (path, *sorted(changes.items()))
        if key not in made:
            made[key] = Rig(path, **changes)
        return made[key]

    yield make
    for rig in made.values():
        rig.close()


@pytest.fixture
def rigs(all_rigs: Rigs) -> Iterator[Rigs]:
    """Makes a rig, or gives the one there is; its front ends go with the test, and with them all that they took."""
    used: list[Rig] = []

    def make(model: str | Path, **changes: Any) -> Rig:
        used.append(all_rigs(model, **changes))
        return used[-1]

    yield make
    for rig in used:
        rig.lose(*rig.fronts)
        assert rig.ring_sessions.capacity.live == len(rig.table) == 0


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A model of tokens, which a bad one makes fail: its card does not say which there are."""
    torch.manual_seed(3)
    config = {"kind": "seq2seq", "input_size": TOKENS, "hidden_size": 8, "output_size": 5}
    module = build(config).eval()
    path = tmp_path_factory.mktemp("tokens") / "seq2seq.onnx"
    export_model(module, path, name="seq2seq")
    model = onnx.load(path)
    card = read_card(model)
    assert card is not None
    (tensor,) = card.signature.inputs
    assert tensor.index_ranges == ((0, TOKENS - 1),)
    inputs = (tensor.model_copy(update={"index_ranges": ()}),)
    write_card(
        model, card.model_copy(update={"signature": card.signature.model_copy(update={"inputs": inputs})})
    )
    onnx.save(model, path)
    return path, module


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    (tmp_path / "models").mkdir()
    made = Engines(save_sum(tmp_path / "models"), tmp_path)
    yield made
    made.stop()
