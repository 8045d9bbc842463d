"""The energies of bands as ONNX operators; `models/layers/bands.py` has the formula."""

from __future__ import annotations

import numpy as np

from streamcell.models import Listener
from streamcell.models.layers.bands import FLOOR

from .graph import GraphBuilder
from .tensors import as_float64


def emit_bands(graph: GraphBuilder, model: Listener, x: str) -> str:
    """x float32[batch, time, samples] → float32[batch, time, bands]."""

    def times(y: str, name: str, matrix: np.ndarray) -> str:
        return graph.node("MatMul", [y, graph.constant(f"bands.{name}", matrix)], f"bands.{name}.product")

    waves, sums = (as_float64(each).astype(np.float32) for each in (model.bands.waves, model.bands.sums))
    y = times(x, "waves", waves)
    y = times(graph.node("Mul", [y, y], "bands.squares"), "sums", sums)
    y = graph.node("Add", [y, graph.constant("bands.floor", np.array(FLOOR, np.float32))], "bands.floored")
    return graph.node("Log", [y], "bands.log")
