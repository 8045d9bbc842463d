"""Forecasts with what they start from baked into the graph: raw values in, raw values out, as PyTorch gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from streamcell.card import read_card
from streamcell.export import export_model
from streamcell.export.runner import Runner
from streamcell.models import Forecaster, build
from streamcell.models.layers.lags import BASES, Base

SIZES: dict[str, dict[str, Any]] = {
    "lstm": {"hidden_size": 6, "num_layers": 2},
    "gru": {"hidden_size": 6},
    "tcn": {"channels": [5]},
    "mlp": {"hidden_sizes": [5]},
}


def forecaster(kind: str, own: Base) -> Forecaster:
    torch.manual_seed(1)
    config = {"kind": kind, **SIZES[kind], "input_size": own.features, "forecast": own.to_json()}
    config |= {"output_size": len(own.targets) * own.levels, "input_affine": True, "output_affine": True}
    model = build(config)
    assert isinstance(model, Forecaster)
    model.typical.standardise(torch.full((own.columns,), 50.0), torch.full((own.columns,), 9.0))
    return model.eval()


CASES = [("gru", base, log) for base in BASES for log in (False, True)]
CASES += [(kind, "difference+season", True) for kind in ("lstm", "tcn", "mlp")]


@pytest.mark.parametrize(("kind", "base", "log"), CASES)
def test_the_graph_takes_and_gives_raw_values(kind: str, base: str, log: bool, tmp_path: Path) -> None:
    own = Base(3, (2, 0), base, 4 if "season" in base else 0, log, levels=2)
    model = forecaster(kind, own)
    card = export_model(model, tmp_path / "m.onnx")
    assert card.kind == kind
    assert card.config["forecast"] == own.to_json()
    assert [state.input for state in card.signature.states] == list(model.state_names)
    # By the file alone, in steps, against the whole sequence in PyTorch.
    rng = np.random.default_rng(0)
    x = rng.uniform(20, 80, (2, 9, 3)).astype(np.float32)
    runner = Runner((tmp_path / "m.onnx").read_bytes(), card.signature)
    states: Any = tuple(state.numpy() for state in model.initial_state(2))
    outputs = []
    for t in range(9):
        (y,), states = runner([x[:, t : t + 1]], states)
        outputs.append(y)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), wanted, rtol=2e-5)


def test_weights_may_be_stored_in_fewer_bits(tmp_path: Path) -> None:
    own = Base(3, (2, 0), "difference+season", 4)
    for precision in ("fp16", "int8"):
        export_model(forecaster("gru", own), tmp_path / f"{precision}.onnx", precision=precision)
        card = read_card(onnx.load(tmp_path / f"{precision}.onnx"))
        assert card is not None
        assert card.precision == precision
