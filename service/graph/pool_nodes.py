"""The nodes that read a state from its pool and write it back.

States of several layers in one tensor [layers, batch, …] lie in the pool as [rows, layers, …]. Cut along its second
axis, a layer's part [batch, 1, …] is the [1, batch, …] that the layer wants under another shape: a Reshape, where the
graph as it stands transposes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from streamcell.card import State

from .edit import subgraphs, surely_depends
from .node_builder import READ_SLOTS, WRITE_SLOTS, Nodes

Scatter = Literal["nd", "elements"]


def pool_state(nodes: Nodes, state: State, scatter: Scatter, gate: str | None = None) -> tuple[str, str]:
    """Replace one state input and output of `nodes.graph`; the names of the pool's input and output.

    `gate` is what `commit_gate` gave, if rows are to be written only once all else has run.

    The gathered value takes the state input's name and the state output keeps its own, so nothing else in the
    graph changes, bodies of If, Loop and Scan included.
    """
    pool, pool_next = (
        nodes.name(f"streamcell.pool.{state.input}"),
        nodes.name(f"streamcell.pool_next.{state.input}"),
    )
    axis, shape = state.batch_axis, tuple(state.shape)
    # With nothing but ones before the batch axis, moving it moves no element.
    flat = math.prod(shape[:axis]) == 1
    rows, new = state.input, state.output
    depends = surely_depends(nodes.graph, state.input, state.output)
    if axis == 0:
        nodes.add(nodes.head, "Gather", [pool, READ_SLOTS], rows, axis=0)
    else:
        rows = nodes.name(f"streamcell.rows.{state.input}")
        new = nodes.name(f"streamcell.new_rows.{state.input}")
        nodes.add(nodes.head, "Gather", [pool, READ_SLOTS], rows, axis=0)
        if flat:
            inner, outer = nodes.constant([*shape[:axis], -1, *shape[axis:]]), nodes.constant([-1, *shape])
            nodes.add(nodes.head, "Reshape", [rows, inner], state.input)
            nodes.add(nodes.tail, "Reshape", [state.output, outer], new)
        else:
            later = range(axis + 1, len(shape) + 1)
            # Fewer kernels on a card; on the CPU a Reshape more costs what a Transpose less saves.
            layered = axis == 1 and scatter == "elements"
            if not layered or not stack(nodes, state.output, new, shape):
                nodes.add(nodes.tail, "Transpose", [state.output], new, perm=[axis, *range(axis), *later])
            if not layered or not unstack(nodes, rows, state.input, shape):
                nodes.add(nodes.head, "Transpose", [rows], state.input, perm=[*range(1, axis + 1), 0, *later])
    write = WRITE_SLOTS
    if not depends:
        write = _write_after(nodes, rows, state.input)
    if gate is not None:
        write = nodes.add(nodes.tail, "Add", [write, gate], nodes.name(f"streamcell.gated.{state.input}"))
    if scatter == "nd":
        nodes.add(nodes.tail, "ScatterND", [pool, write, new], pool_next)
    else:
        index = _element_index(nodes, write, shape, state.input)
        nodes.add(nodes.tail, "ScatterElements", [pool, index, new], pool_next, axis=0)
    return pool, pool_next


def commit_gate(nodes: Nodes, names: Iterable[str]) -> str:
    """int64[1] of value 0 that is there only once every value of `names` has been computed.

    Added to the rows to write, it makes a run that fails leave every state as it was.
    """
    total = ""
    count = 0
    for value in dict.fromkeys(names):
        number = _first_as_number(nodes, value, f"gate.{count}", rank_one=True)
        count += 1
        total = (
            nodes.add(nodes.tail, "Add", [total, number], nodes.name("streamcell.gate.sum"))
            if total
            else number
        )
    # At most `count`, so that dividing by more gives 0, whatever the values are.
    return nodes.add(nodes.tail, "Div", [total, nodes.constant([count + 1])], nodes.name("streamcell.gate"))


def _write_after(nodes: Nodes, rows: str, state: str) -> str:
    """The rows to write, int64[batch, 1], computed so that `rows` must have been gathered before.

    One element of each gathered row, as 0 or 1, is halved in integers and added. Values, not shapes: shapes are
    folded and merged by the optimiser.
    """
    number = _first_as_number(nodes, rows, state, rank_one=False)
    zero, write = nodes.name(f"streamcell.zero.{state}"), nodes.name(f"streamcell.write.{state}")
    nodes.add(nodes.tail, "Div", [number, nodes.constant(2)], zero)
    return nodes.add(nodes.tail, "Add", [WRITE_SLOTS, zero], write)


def _first_as_number(nodes: Nodes, value: str, label: str, *, rank_one: bool) -> str:
    """0 or 1 from the first element of `value`, int64[1], or from that of each of its rows, int64[rows, 1]."""
    flat, first, truth, number = (
        nodes.name(f"streamcell.{part}.{label}") for part in ("flat", "first", "truth", "number")
    )
    if rank_one:
        nodes.add(nodes.tail, "Reshape", [value, nodes.constant([-1])], flat)
    else:
        nodes.add(nodes.tail, "Flatten", [value], flat, axis=1)
    nodes.add(nodes.tail, "Gather", [flat, nodes.constant([0])], first, axis=0 if rank_one else 1)
    nodes.add(nodes.tail, "Cast", [first], truth, to=TensorProto.BOOL)
    return nodes.add(nodes.tail, "Cast", [truth], number, to=TensorProto.INT64)


def _element_index(nodes: Nodes, write: str, shape: tuple[int, ...], state: str) -> str:
    """ScatterElements wants an index for each element: [batch, 1, …] + zeros [1, *shape]."""
    column = nodes.name(f"streamcell.column.{state}")
    nodes.add(nodes.tail, "Reshape", [write, nodes.constant([-1, *(1 for _ in shape)])], column)
    if math.prod(shape) == 1:
        return column
    zeros = nodes.constant(np.zeros((1, *shape)))
    return nodes.add(nodes.tail, "Add", [column, zeros], nodes.name(f"streamcell.index.{state}"))


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
