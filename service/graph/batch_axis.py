"""Axes of size 1 at a graph's interface: a batch axis round what has none, no time axis round what has one timestep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx

from streamcell.card.graphs.edit import (
    initializer_names,
    produced_names,
    remove_initializers,
    rename_uses,
    rename_value,
)
from streamcell.card.graphs.node_builder import NodeBuilder

# (value, axis, name of the result) → nodes.
_Turn = Callable[[NodeBuilder, str, int, str], Any]


def add_batch_axis(model: onnx.ModelProto, axes: Mapping[str, int]) -> onnx.ModelProto:
    """`model` with one more axis, of size 1, in each of its inputs and outputs in `axes`.

    Args:
        model: left as it is, and returned if there are no `axes`.
        axes: by name of an input or output, where the new axis stands among the others.
    """

    def declare(dims: Any, axis: int) -> None:
        dims.insert(axis, onnx.TensorShapeProto.Dimension(dim_value=1))

    return _with_interface(model, axes, _squeeze, _unsqueeze, declare)


def drop_time_axis(model: onnx.ModelProto, axes: Mapping[str, int]) -> onnx.ModelProto:
    """`model` without an axis, of size 1, in each of its inputs and outputs in `axes`.

    Args:
        model: left as it is, and returned if there are no `axes`.
        axes: by name of an input or output, where the axis stands.
    """

    def declare(dims: Any, axis: int) -> None:
        del dims[axis]

    return _with_interface(model, axes, _unsqueeze, _squeeze, declare)


def _squeeze(nodes: NodeBuilder, value: str, axis: int, into: str) -> None:
    nodes.squeeze(value, axis, into=into)


def _unsqueeze(nodes: NodeBuilder, value: str, axis: int, into: str) -> None:
    nodes.unsqueeze(value, axis, into=into)


def _with_interface(
    model: onnx.ModelProto,
    axes: Mapping[str, int],
    before: _Turn,
    after: _Turn,
    declare: Callable[[Any, int], None],
) -> onnx.ModelProto:
    """A copy that turns its inputs in `axes` with `before` and its outputs with `after`, and declares them so."""
    if not axes:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    head = NodeBuilder(copy)
    tail = head.beside()
    made = produced_names(graph) | initializer_names(graph) - {value.name for value in graph.input}
    for value in graph.input:
        if value.name in axes:
            inner = head.name(f"streamcell.inner.{value.name}")
            rename_uses(graph.node, value.name, inner)
            before(head, value.name, axes[value.name], inner)
    for value in graph.output:
        # An output that is one of the inputs has the caller's axes already.
        if value.name in axes and value.name in made:
            inner = tail.name(f"streamcell.inner.{value.name}")
            rename_value(graph, graph.node, value.name, inner)
            after(tail, inner, axes[value.name], value.name)
    nodes = [*head.nodes, *graph.node, *tail.nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    inputs = {value.name for value in graph.input if value.name in axes}
    remove_initializers(graph, inputs)  # a default has the shape of before
    for value in (*graph.input, *graph.output):
        if value.name in axes and value.type.tensor_type.HasField("shape"):
            declare(value.type.tensor_type.shape.dim, axes[value.name])
    return copy
