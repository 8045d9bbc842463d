"""The nodes that read a state from its pool and write it back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from streamcell.card import State

from .edit import surely_depends, value_names
from .stacked_states import stack, unstack

READ_SLOTS = "streamcell.read_slots"
WRITE_SLOTS = "streamcell.write_slots"

Scatter = Literal["nd", "elements"]


@dataclass
class Nodes:
    """Nodes to be put before (`head`) and behind (`tail`) those of `graph`, under names that are free in it."""

    graph: onnx.GraphProto
    head: list[onnx.NodeProto] = field(default_factory=list)
    tail: list[onnx.NodeProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = value_names(self.graph) | {READ_SLOTS, WRITE_SLOTS}
        self._constants: dict[tuple[int, ...] | bytes, str] = {}

    def name(self, wanted: str) -> str:
        """`wanted`, numbered where it is taken; it is taken from now on."""
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}.{number}"
        self._names.add(name)
        return name

    def add(
        self, where: list[onnx.NodeProto], op: str, inputs: list[str], output: str, **attributes: Any
    ) -> str:
        """Append a node to `where`; its output's name."""
        where.append(helper.make_node(op, inputs, [output], name=f"streamcell/{op}/{output}", **attributes))
        return output

    def constant(self, value: npt.ArrayLike) -> str:
        """The name of an initializer that holds `value` as int64."""
        array = np.asarray(value, dtype=np.int64)
        key = repr(array.shape).encode() + array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.name("streamcell.constant")
            self.graph.initializer.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]


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
