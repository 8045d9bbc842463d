"""The models to measure: freshly initialised, exported and proved by `streamcell.export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

INPUT, HIDDEN, LAYERS, OUTPUT = 32, 128, 2, 8


def config(kind: str, hidden: int = HIDDEN) -> dict[str, Any]:
    """What `streamcell.models.architectures.build` makes of a kind: recurrent ones 2 × `hidden`, the MLP
    32-`hidden`-`hidden`-8."""
    if kind == "mlp":
        return {"kind": kind, "input_size": INPUT, "hidden_sizes": [hidden, hidden], "output_size": OUTPUT}
    return {
        "kind": kind,
        "input_size": INPUT,
        "hidden_size": hidden,
        "num_layers": LAYERS,
        "output_size": OUTPUT,
    }


def export(folder: Path, kind: str, hidden: int = HIDDEN, name: str | None = None) -> Path:
    """Write `folder`/NAME.onnx, NAME being `kind` if not given."""
    import torch

    from streamcell.export import export_model
    from streamcell.models import build

    torch.manual_seed(3)
    path = folder / f"{name or kind}.onnx"
    export_model(build(config(kind, hidden)).eval(), path, name=path.stem)
    return path
