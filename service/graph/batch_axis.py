"""A batch axis round what has none: a graph that works on one session becomes one that takes batches of one."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from .edit import initializer_names, produced_names, remove_initializers, rename_uses, rename_value
from .node_builder import NodeBuilder


def add_batch_axis(model: onnx.ModelProto, axes: Mapping[str, int]) -> onnx.ModelProto:
    """`model` with one more axis, of size 1, in each of its inputs and outputs in `axes`.

    Args:
        model: left as it is, and returned if there are no `axes`.
        axes: by name of an input or output, where the new axis stands among the others.
    """
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
            inner = head.name(f"streamcell.unbatched.{value.name}")
            rename_uses(graph.node, value.name, inner)
            head.squeeze(value.name, axes[value.name], into=inner)
    for value in graph.output:
        # An output that is one of the inputs has the axis already.
        if value.name in axes and value.name in made:
            inner = tail.name(f"streamcell.unbatched.{value.name}")
            rename_value(graph, graph.node, value.name, inner)
            tail.unsqueeze(inner, axes[value.name], into=value.name)
    nodes = [*head.nodes, *graph.node, *tail.nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    inputs = {value.name for value in graph.input if value.name in axes}
    remove_initializers(graph, inputs)  # a default has the shape of before
    for value in (*graph.input, *graph.output):
        if value.name in axes and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            dims.insert(axes[value.name], onnx.TensorShapeProto.Dimension(dim_value=1))
    return copy
