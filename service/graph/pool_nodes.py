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

from streamcell.card import OpenInput, State
from streamcell.card.graphs.edit import subgraphs, surely_depends
from streamcell.card.graphs.node_builder import NodeBuilder

from .rows import INITIAL_ROW

Scatter = Literal["nd", "elements"]
READ_SLOTS = "streamcell.read_slots"
WRITE_SLOTS = "streamcell.write_slots"


def open_port(name: str) -> str:
    """The graph input that brings the open input `name`, [batch, *shape]; read in rows at the initial state only."""
    return f"streamcell.open.{name}"


def choose_given(head: NodeBuilder, value: OpenInput, rows: str, into: str) -> None:
    """Make `into` of what a session is given, if the row read is the initial state's, and else of `rows`."""
    fresh = head.add("Equal", READ_SLOTS, head.constant(INITIAL_ROW))
    fresh = head.reshape(fresh, -1, *(1 for _ in value.step_shape))
    head.add("Where", fresh, open_port(value.name), rows, into=into)


def pool_state(
    head: NodeBuilder,
    tail: NodeBuilder,
    state: State,
    scatter: Scatter,
    gate: str | None = None,
    *,
    given: OpenInput | None = None,
    few_kernels: bool = False,
) -> tuple[str, str, str]:
    """Replace one state input and output of the graph; the names of the pool's input and output, and of the new rows.

    `head` and `tail` collect nodes before and after the graph's own. `gate` is the result of `commit_gate`, if
    rows are to be written only once all else has run. `given` is the state's first value, if each session has its own.

    The gathered value takes the state input's name and the state output keeps its own, so nothing else in the
    graph changes, bodies of If, Loop and Scan included.
    """
    pool, pool_next = (
        head.name(f"streamcell.pool.{state.input}"),
        head.name(f"streamcell.pool_next.{state.input}"),
    )
    axis, shape = state.batch_axis, tuple(state.shape)
    # With nothing but ones before the batch axis, moving it moves no element.
    flat = math.prod(shape[:axis]) == 1
    rows, new = state.input, state.output
    depends = surely_depends(head.graph, state.input, state.output)
    if given is not None:
        rows = head.name(f"streamcell.rows.{state.input}")
        head.add("Gather", pool, READ_SLOTS, into=rows, axis=0)
        choose_given(head, given, rows, state.input)
    elif axis == 0:
        head.add("Gather", pool, READ_SLOTS, into=rows, axis=0)
    else:
        rows = head.name(f"streamcell.rows.{state.input}")
        new = tail.name(f"streamcell.new_rows.{state.input}")
        head.add("Gather", pool, READ_SLOTS, into=rows, axis=0)
        if flat:
            head.reshape(rows, *shape[:axis], -1, *shape[axis:], into=state.input)
            tail.reshape(state.output, -1, *shape, into=new)
        else:
            later = range(axis + 1, len(shape) + 1)
            # Fewer kernels on a card; on the CPU a Reshape more costs what a Transpose less saves.
            layered = axis == 1 and few_kernels
            if not layered or not stack(tail, state.output, new, shape):
                tail.add("Transpose", state.output, into=new, perm=[axis, *range(axis), *later])
            if not layered or not unstack(head, rows, state.input, shape):
                head.add("Transpose", rows, into=state.input, perm=[*range(1, axis + 1), 0, *later])
    write = WRITE_SLOTS
    if not depends:
        write = _write_after(tail, rows, state.input)
    if gate is not None:
        write = tail.add("Add", write, gate, into=tail.name(f"streamcell.gated.{state.input}"))
    if scatter == "nd":
        tail.add("ScatterND", pool, write, new, into=pool_next)
    else:
        index = _element_index(tail, write, shape, state.input)
        tail.add("ScatterElements", pool, index, new, into=pool_next, axis=0)
    return pool, pool_next, new


def commit_gate(tail: NodeBuilder, names: Iterable[str]) -> str:
    """int64[1] of value 0 that is there only once every value of `names` has been computed.

    Added to the rows to write, it makes a run that fails leave every state as it was.
    """
    numbers = [
        _first_as_number(tail, value, f"gate.{place}", rank_one=True)
        for place, value in enumerate(dict.fromkeys(names))
    ]
    total = numbers[0]
    for number in numbers[1:]:
        total = tail.add("Add", total, number, into=tail.name("streamcell.gate.sum"))
    # At most the number of elements, so that dividing by more gives 0 for all values.
    return tail.add("Div", total, tail.constant([len(numbers) + 1]), into=tail.name("streamcell.gate"))


def _write_after(tail: NodeBuilder, rows: str, state: str) -> str:
    """The rows to write, int64[batch, 1], computed so that `rows` must have been gathered before.

    One element of each gathered row, as 0 or 1, is halved in integers and added. Values, not shapes: shapes are
    folded and merged by the optimiser.
    """
    number = _first_as_number(tail, rows, state, rank_one=False)
    zero = tail.add("Div", number, tail.constant(2), into=tail.name(f"streamcell.zero.{state}"))
    return tail.add("Add", WRITE_SLOTS, zero, into=tail.name(f"streamcell.write.{state}"))


def _first_as_number(tail: NodeBuilder, value: str, label: str, *, rank_one: bool) -> str:
    """0 or 1 from the first element of `value`, int64[1], or from that of each of its rows, int64[rows, 1]."""
    flat, first, truth, number = (
        tail.name(f"streamcell.{part}.{label}") for part in ("flat", "first", "truth", "number")
    )
    if rank_one:
        tail.reshape(value, -1, into=flat)
    else:
        tail.add("Flatten", value, into=flat, axis=1)
    tail.add("Gather", flat, tail.constant([0]), into=first, axis=0 if rank_one else 1)
    tail.add("Cast", first, into=truth, to=TensorProto.BOOL)
    return tail.add("Cast", truth, into=number, to=TensorProto.INT64)


def _element_index(tail: NodeBuilder, write: str, shape: tuple[int, ...], state: str) -> str:
    """ScatterElements wants an index for each element: [batch, 1, …] + zeros [1, *shape]."""
    column = tail.reshape(write, -1, *(1 for _ in shape), into=tail.name(f"streamcell.column.{state}"))
    if math.prod(shape) == 1:
        return column
    zeros = tail.constant(np.zeros((1, *shape)))
    return tail.add("Add", column, zeros, into=tail.name(f"streamcell.index.{state}"))


def unstack(head: NodeBuilder, rows: str, state: str, shape: tuple[int, ...]) -> bool:
    """Split `rows` instead of `state`, if only a Split into layers reads it.

    Args:
        head: collects the new nodes; the Split is removed from its graph.
        rows: [batch, layers, …], as gathered from the pool.
        state: the state input, [layers, batch, …].
        shape: of one row, (layers, …).
    """
    graph = head.graph
    readers = [node for node in graph.node if state in node.input or _inside(node, state)]
    if len(readers) != 1 or readers[0].op_type != "Split" or any(state == o.name for o in graph.output):
        return False
    (split,) = readers
    if split.input[0] != state or _axis(split) != 0 or len(split.output) != shape[0] or not all(split.output):
        return False
    if not _ones(graph, split):
        return False
    parts = [head.name(f"streamcell.part.{name}") for name in split.output]
    cut = onnx.NodeProto()
    cut.CopyFrom(split)
    cut.input[0] = rows
    del cut.output[:]
    cut.output.extend(parts)
    kept = [a for a in split.attribute if a.name != "axis"]
    del cut.attribute[:]
    cut.attribute.extend([*kept, helper.make_attribute("axis", 1)])
    head.nodes.append(cut)
    for part, name in zip(parts, split.output, strict=True):
        head.reshape(part, 1, -1, *shape[1:], into=name)
    graph.node.remove(split)
    return True


def stack(tail: NodeBuilder, state: str, rows: str, shape: tuple[int, ...]) -> bool:
    """Make `rows` [batch, layers, …] from what a Concat makes `state` [layers, batch, …] of."""
    makers = [node for node in tail.graph.node if state in node.output]
    if len(makers) != 1 or makers[0].op_type != "Concat" or _axis(makers[0]) != 0:
        return False
    layers = list(makers[0].input)
    if len(layers) != shape[0]:
        return False
    parts = [
        tail.reshape(layer, -1, 1, *shape[1:], into=tail.name(f"streamcell.part.{layer}")) for layer in layers
    ]
    tail.add("Concat", *parts, into=rows, axis=1)
    return True


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _inside(node: onnx.NodeProto, name: str) -> bool:
    """Whether a body that `node` holds reads `name`."""
    return any(
        name in inner.input or _inside(inner, name) for body in subgraphs(node) for inner in body.node
    ) or any(name == output.name for body in subgraphs(node) for output in body.output)


def _ones(graph: onnx.GraphProto, split: onnx.NodeProto) -> bool:
    """True if each part's size is 1, given that the number of parts is the number of layers."""
    for attribute in split.attribute:
        if attribute.name == "split":
            return all(size == 1 for size in attribute.ints)
    if len(split.input) < 2 or not split.input[1]:
        return True  # equal parts
    sizes = next((i for i in graph.initializer if i.name == split.input[1]), None)
    return sizes is not None and bool((numpy_helper.to_array(sizes) == 1).all())
