"""Small ONNX models, written in ONNX's textual syntax and saved where a server looks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from streamcell.service.graph.interface import GraphInterface, read_interface


def parsed(text: str, opset: int = 17, ir_version: int = 8, **initializers: np.ndarray) -> onnx.ModelProto:
    """The model of a graph, `(inputs) => (outputs) <initializers> { nodes }`, with more initializers by name."""
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in initializers.items())
    return model


def interface(text: str) -> GraphInterface:
    """That of a graph without nodes: `(inputs) => (outputs)`."""
    return read_interface(parsed(f"{text} {{ }}").graph)


def save(model: onnx.ModelProto, path: Path, sidecar: str | None = None) -> Path:
    """Saves a model, and a sidecar with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    if sidecar is not None:
        path.with_suffix(".toml").write_text(sidecar, encoding="utf-8")
    return path
