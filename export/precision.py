"""Weights stored in fewer bits. The graph turns them back into float32.

A weight becomes initializers of the smaller type and the nodes that widen it: Cast for fp16, Cast and Mul by float32
scales for int8 (symmetric, round to nearest; a scale for each output, and for weights of products for each block of
what the output adds up, see `int8_weights`). ONNX Runtime computes these nodes once, when it loads the file, so any
runtime and any device run the file in float32. The server may multiply in int8 instead (`int8_form`), and the exporter
proves both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from streamcell.card.graphs.int8_weights import Stored, rounded, scales_for, widening

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
# Of products: the axis that they add up (for Gemm with transB: 1). The operators above without one have no kernel in
# int8, so that one scale for each output does.
ADDED = {"MatMul": -2, "Gemm": 0, "RNN": 2, "LSTM": 2, "GRU": 2}
LARGEST = {"fp16": 65504.0}


@dataclass(frozen=True)
class _Axes:
    rows: int
    added: int | None


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


def _weights(graph: onnx.GraphProto) -> dict[str, _Axes]:
    """Name of each float32 weight → its axes."""
    matrices = {
        i.name: len(i.dims)
        for i in graph.initializer
        if i.data_type == TensorProto.FLOAT and len(i.dims) >= 2
    }
    found: dict[str, _Axes] = {}
    for node in _nodes(graph):
        for place, axis in ROWS.get(node.op_type, {}).items():
            name = node.input[place] if place < len(node.input) else ""
            if name in matrices:
                added = ADDED.get(node.op_type)
                if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
                    axis, added = 0, 1
                rank = matrices[name]
                found.setdefault(name, _Axes(axis % rank, None if added is None else added % rank))
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


def _as_int8(name: str, value: NDArray[Any], axes: _Axes) -> tuple[list[TensorProto], list[onnx.NodeProto]]:
    if axes.added is not None:
        return widening(name, Stored.of(value, axes.added))
    others = tuple(a for a in range(value.ndim) if a != axes.rows)
    scale = scales_for(np.abs(value).max(axis=others, keepdims=True, initial=0.0))
    stored = [
        numpy_helper.from_array(rounded(value, scale), f"{name}.int8"),
        numpy_helper.from_array(scale, f"{name}.scale"),
    ]
    wide = f"{name}.steps"
    return stored, [
        _cast(stored[0].name, wide),
        helper.make_node("Mul", [wide, stored[1].name], [name], f"{name}.widen"),
    ]


def _cast(source: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], name, to=TensorProto.FLOAT)
