"""Sound with the energies of its bands computed in the graph: samples in, as PyTorch takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.export import export_model
from streamcell.export.runner import Runner
from streamcell.models import Listener, build

SIZES: dict[str, dict[str, Any]] = {
    "gru": {"hidden_size": 6, "reset_after": True},
    "tcn": {"channels": [5]},
    "mlp": {"hidden_sizes": [5]},
}
BANDS = {"samples": 40, "rate": 4000, "count": 4}


@pytest.mark.parametrize(("kind", "precision"), [*((kind, "fp32") for kind in SIZES), ("gru", "int8")])
def test_the_graph_takes_samples(kind: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build(
        {"kind": kind, **SIZES[kind], "input_size": 4, "output_size": 1, "input_affine": True, "bands": BANDS}
    ).eval()
    assert isinstance(model, Listener)
    assert model.inner.input_affine is not None
    model.inner.input_affine.standardise(torch.full((4,), -6.0), torch.full((4,), 3.0))
    card = export_model(model, tmp_path / "m.onnx", precision=precision)
    assert card.config["bands"] == BANDS
    assert card.signature.inputs[0].step_shape == (40,)
    assert card.generation is None
    # By the file alone, in steps, against the whole sequence in PyTorch; the second clip is silent.
    x = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 9, 40)).astype(np.float32)
    x[1] = 0
    runner = Runner((tmp_path / "m.onnx").read_bytes(), card.signature)
    states: Any = tuple(state.numpy() for state in model.initial_state(2))
    outputs = []
    for t in range(9):
        (y,), states = runner([x[:, t : t + 1]], states)
        outputs.append(y)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(
        np.concatenate(outputs, axis=1), wanted, atol=1e-5 if precision == "fp32" else 0.05
    )
