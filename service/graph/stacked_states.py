"""States of several layers in one tensor [layers, batch, …], taken apart and put together without moving elements.

In the pool such a state lies as [rows, layers, …]. Cut along its second axis, a layer's part [batch, 1, …] is the
[1, batch, …] that the layer wants under another shape: a Reshape, where the graph as it stands transposes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import helper, numpy_helper

from .edit import subgraphs

if TYPE_CHECKING:
    from .pool_nodes import Nodes


def unstack(nodes: Nodes, rows: str, state: str, shape: tuple[int, ...]) -> bool:
    """Cut `rows` in place of `state`, where a Split into layers is all that reads it.

    Args:
        nodes: takes what is made, in `head`; the Split goes from its graph.
        rows: [batch, layers, …], as gathered from the pool.
        state: the state input, [layers, batch, …].
        shape: of one row, (layers, …).
    """
    graph = nodes.graph
    readers = [node for node in graph.node if state in node.input or _inside(node, state)]
    if len(readers) != 1 or readers[0].op_type != "Split" or any(state == o.name for o in graph.output):
        return False
    (split,) = readers
    if split.input[0] != state or _axis(split) != 0 or len(split.output) != shape[0] or not all(split.output):
        return False
    if not _ones(graph, split):
        return False
    parts = [nodes.name(f"streamcell.part.{name}") for name in split.output]
    cut = onnx.NodeProto()
    cut.CopyFrom(split)
    cut.input[0] = rows
    del cut.output[:]
    cut.output.extend(parts)
    kept = [a for a in split.attribute if a.name != "axis"]
    del cut.attribute[:]
    cut.attribute.extend([*kept, helper.make_attribute("axis", 1)])
    nodes.head.append(cut)
    layer = nodes.constant([1, -1, *shape[1:]])
    for part, name in zip(parts, split.output, strict=True):
        nodes.add(nodes.head, "Reshape", [part, layer], name)
    graph.node.remove(split)
    return True


def stack(nodes: Nodes, state: str, rows: str, shape: tuple[int, ...]) -> bool:
    """Make `rows` [batch, layers, …] from what a Concat makes `state` [layers, batch, …] of."""
    makers = [node for node in nodes.graph.node if state in node.output]
    if len(makers) != 1 or makers[0].op_type != "Concat" or _axis(makers[0]) != 0:
        return False
    layers = list(makers[0].input)
    if len(layers) != shape[0]:
        return False
    row = nodes.constant([-1, 1, *shape[1:]])
    parts = [
        nodes.add(nodes.tail, "Reshape", [layer, row], nodes.name(f"streamcell.part.{layer}"))
        for layer in layers
    ]
    nodes.add(nodes.tail, "Concat", parts, rows, axis=1)
    return True


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _inside(node: onnx.NodeProto, name: str) -> bool:
    """Whether a body that `node` holds reads `name`."""
    return any(
        name in inner.input or _inside(inner, name) for body in subgraphs(node) for inner in body.node
    ) or any(name == output.name for body in subgraphs(node) for output in body.output)


def _ones(graph: onnx.GraphProto, split: onnx.NodeProto) -> bool:
    """Whether each part's size is 1, given that there are as many parts as layers."""
    for attribute in split.attribute:
        if attribute.name == "split":
            return all(size == 1 for size in attribute.ints)
    if len(split.input) < 2 or not split.input[1]:
        return True  # equal parts
    sizes = next((i for i in graph.initializer if i.name == split.input[1]), None)
    return sizes is not None and bool((numpy_helper.to_array(sizes) == 1).all())
