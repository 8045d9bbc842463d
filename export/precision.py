"""Weights stored in fewer bits. The graph turns them back into float32, and computes in float32.

A weight becomes an initializer of the smaller type and the nodes that widen it: Cast for fp16, Cast and Mul by a
float32 scale a output row for int8 (symmetric, round to nearest). ONNX Runtime computes these nodes once, when
it loads the file, so the file is two or four times smaller and the served model as fast as in fp32. Why not
integer arithmetic: operators such as DynamicQuantizeLSTM take one activation scale for the whole batch, so a
session's outputs would depend on the sessions it shares a batch with; they exist for LSTM and MatMul only, and
on the CPU only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .errors import ExportError
from .graph import check

# Operator → input that is a weight → axis of its output rows (for Gemm with transB: 0).
ROWS: dict[str, dict[int, int]] = {
    "MatMul": {1: -1},
    "Gemm": {1: 1},
    "RNN": {1: 1, 2: 1},
    "LSTM": {1: 1, 2: 1},
    "GRU": {1: 1, 2: 1},
    "Conv": {1: 0},
    "ConvTranspose": {1: 1},
    "Gather": {0: 0},
}
LARGEST = {"fp16": 65504.0}


def store(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """`model` with its float32 weights (of two axes and more; biases stay) stored in `precision`.

    Raises:
        ExportError: there is no weight to store, or one does not fit the range of fp16.
    """
    if precision == "fp32":
        return model
    weights = _weights(model.graph)
    if not weights:
        raise ExportError(f"nothing to store as {precision}: the graph has no float32 weights")
    kept = []
    nodes: list[onnx.NodeProto] = []
    for initializer in model.graph.initializer:
        if initializer.name not in weights:
            kept.append(initializer)
            continue
        value = numpy_helper.to_array(initializer)
        if precision == "fp16":
            stored, made = _as_fp16(initializer.name, value)
        else:
            stored, made = _as_int8(initializer.name, value, weights[initializer.name])
        kept += stored
        nodes += made
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    return check(model)


def _weights(graph: onnx.GraphProto) -> dict[str, int]:
    """Name of each float32 weight → axis of its output rows."""
    matrices = {
        i.name: len(i.dims)
        for i in graph.initializer
        if i.data_type == TensorProto.FLOAT and len(i.dims) >= 2
    }
    found: dict[str, int] = {}
    for node in _nodes(graph):
        for place, axis in ROWS.get(node.op_type, {}).items():
            name = node.input[place] if place < len(node.input) else ""
            if name in matrices:
                if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
                    axis = 0
                found.setdefault(name, axis % matrices[name])
    return found


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies of its control flow, which may use its weights."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _as_fp16(name: str, value: NDArray[Any]) -> tuple[list[TensorProto], list[onnx.NodeProto]]:
    largest = float(np.abs(value).max(initial=0.0))
    if largest > LARGEST["fp16"]:
        raise ExportError(f"{name} holds {largest:.3g}, above fp16's maximum, {LARGEST['fp16']:g}")
    stored = numpy_helper.from_array(value.astype(np.float16), f"{name}.fp16")
    return [stored], [_cast(stored.name, name)]


def _as_int8(name: str, value: NDArray[Any], axis: int) -> tuple[list[TensorProto], list[onnx.NodeProto]]:
    others = tuple(a for a in range(value.ndim) if a != axis)
    largest = np.abs(value).max(axis=others, keepdims=True, initial=0.0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    steps = np.clip(np.rint(value / scale), -127, 127).astype(np.int8)
    stored = [
        numpy_helper.from_array(steps, f"{name}.int8"),
        numpy_helper.from_array(scale, f"{name}.scale"),
    ]
    wide = f"{name}.steps"
    return stored, [
        _cast(stored[0].name, wide),
        helper.make_node("Mul", [wide, stored[1].name], [name], f"{name}.widen"),
    ]


def _cast(source: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], name, to=TensorProto.FLOAT)
