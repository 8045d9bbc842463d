"""A graph that multiplies in int8 by the weights that its file stores in int8.

ONNX Runtime's MatMulNBits (com.microsoft; 8 bits, accuracy_level 4) takes activations to int8 in blocks
of a row, each with a scale of its own, adds up whole numbers and gives float32. A row's result does not depend on the
other rows of its batch, as it does with one scale for all of them (DynamicQuantizeLinear and its kind). States, biases
and element-wise arithmetic stay float32.

Recurrent operators are written out: x·Wᵀ for all timesteps at once, and h·Rᵀ in a Scan over time. Where there is one
timestep the Scan's body stands alone; it does the same operations on the same values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .edit import drop_unread, drop_unread_initializers, replace_nodes
from .int8_weights import Stored, stored_weights
from .node_builder import NodeBuilder
from .recurrent_cells import (
    GATES,
    Cell,
    bias,
    biases,
    cell_of,
    input_of,
    lengths_values,
    step,
    write_single,
)
from .shapes import inferred_sizes

DOMAIN = "com.microsoft"
# h·Rᵀ with its bias, for some rows of R.
_OfState: TypeAlias = Callable[[NodeBuilder, str, int, int], str]
_ZERO = 128  # the kernel's zero point of unsigned weights if none is given


def int8_form(model: onnx.ModelProto, lengths: str | None) -> onnx.ModelProto | None:
    """A copy of `model` that multiplies in int8.

    Replaced are MatMul and Gemm by a stored weight, and LSTM, GRU and RNN with both weights stored, if they can be
    written out (see `cell_of`). Others, and those in the bodies of control flow, stay in float32.

    Args:
        model: as `int8_weights` stores it; in its pool or not.
        lengths: its input of lengths.

    Returns:
        None if nothing is replaced.
    """
    weights = stored_weights(model.graph)
    if not weights:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy if _Rewrite(copy, weights, lengths).apply() else None


class _Rewrite:
    def __init__(self, model: onnx.ModelProto, weights: dict[str, Stored], lengths: str | None) -> None:
        self._model, self._weights = model, weights
        self._lengths = lengths_values(model.graph, lengths)
        self._shapes = inferred_sizes(model)
        self._builder = NodeBuilder(model)
        self._packed: dict[str, tuple[str, str]] = {}

    def apply(self) -> bool:
        """Whether a node was replaced."""
        graph = self._model.graph
        nodes: list[onnx.NodeProto] = []
        found = False
        for node in graph.node:
            write = self._builder.beside(f"streamcell.int8.{node.name or ''.join(node.output[:1])}")
            replaced = self._replace(write, node)
            found |= replaced
            nodes += write.nodes if replaced else [node]
        if not found:
            return False
        replace_nodes(graph, nodes)
        drop_unread(graph)
        drop_unread_initializers(graph)
        if not any(opset.domain == DOMAIN for opset in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return True

    def _replace(self, write: NodeBuilder, node: onnx.NodeProto) -> bool:
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in ("MatMul", "Gemm"):
            return self._product(write, node)
        return self._recurrent(write, node)

    def _product(self, write: NodeBuilder, node: onnx.NodeProto) -> bool:
        weight = self._weights.get(node.input[1])
        if weight is None or weight.steps.ndim != 2:
            return False
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if weight.axis != (1 if given.get("transB", 0) else 0):
            return False
        if given.get("transA", 0) or given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1:
            return False
        addend = input_of(node, 2)
        into = write.name(f"{node.output[0]}.product") if addend else node.output[0]
        self._times(write, node.input[0], node.input[1], weight, into=into)
        if addend:
            write.add("Add", into, addend, into=node.output[0])
        return True

    def _recurrent(self, write: NodeBuilder, node: onnx.NodeProto) -> bool:
        cell = cell_of(node)
        if cell is None or input_of(node, 4) not in self._lengths:
            return False
        W, R = self._weights.get(cell.W), self._weights.get(cell.R)
        if W is None or R is None or {W.axis, R.axis} != {2}:
            return False
        W, R = W.first(), R.first()
        apart = cell.op == "GRU" and cell.linear_before_reset
        bias_x, bias_h = biases(write, cell) if apart else (bias(write, cell), "")
        single = self._shapes.get(node.input[0], ())[:1] == (1,)
        x = write.squeeze(node.input[0], 0) if single else node.input[0]
        of_x = self._times(write, x, cell.W, W, bias_x)

        def of_h(write: NodeBuilder, h: str, begin: int, end: int) -> str:
            return self._times(write, h, cell.R, R.cut(begin, end), bias_h, part=f"{begin}:{end}")

        if single:
            write_single(write, node, cell, _Int8Products(write, cell, of_x, of_h))
        else:
            self._scan(write, node, cell, of_x, of_h)
        return True

    def _scan(self, write: NodeBuilder, node: onnx.NodeProto, cell: Cell, of_x: str, of_h: _OfState) -> None:
        """A Scan over time in place of `node`. A row stays as it is once its timesteps are over."""
        states = [
            write.reshape(input_of(node, place), -1, cell.hidden) for place in (5, 6) if input_of(node, place)
        ]
        lengths = input_of(node, 4)
        live = [_live(write, of_x, lengths)] if lengths else []
        body = write.beside()
        held = [body.name(f"{node.output[0]}.state") for _ in states]
        row = body.name(f"{node.output[0]}.of_x")
        flag = [body.name(f"{node.output[0]}.live") for _ in live]
        after = list(step(body, cell, _Int8Products(body, cell, row, of_h), *held))
        if flag:
            after = [body.add("Where", flag[0], new, old) for new, old in zip(after, held, strict=True)]
        shown = body.add("Identity", after[0])
        value = helper.make_tensor_value_info
        batch = "streamcell.batch"
        width = GATES[cell.op] * cell.hidden
        graph = helper.make_graph(
            body.nodes,
            body.name(f"{node.output[0]}.step"),
            [
                *(value(name, TensorProto.FLOAT, [batch, cell.hidden]) for name in held),
                value(row, TensorProto.FLOAT, [batch, width]),
                *(value(name, TensorProto.BOOL, [batch, 1]) for name in flag),
            ],
            [value(name, TensorProto.FLOAT, [batch, cell.hidden]) for name in (*after, shown)],
        )
        last = [write.name(f"{node.output[0]}.last") for _ in states]
        every = write.name(f"{node.output[0]}.every")
        write.nodes.append(
            helper.make_node(
                "Scan",
                [*states, of_x, *live],
                [*last, every],
                name=f"streamcell/Scan/{every}",
                num_scan_inputs=1 + len(live),
                body=graph,
            )
        )
        outputs = [*node.output, "", ""]
        if outputs[0]:
            write.unsqueeze(every, 1, into=outputs[0])
        for name, final in zip(outputs[1:], last, strict=False):
            if name:
                write.reshape(final, 1, -1, cell.hidden, into=name)

    def _times(
        self,
        write: NodeBuilder,
        x: str,
        name: str,
        weight: Stored,
        bias: str = "",
        *,
        part: str = "",
        into: str | None = None,
    ) -> str:
        """x [..., inputs] · weightᵀ + bias → [..., outputs]. `part`: which of the outputs of `name` these are."""
        steps = weight.rows()[0]
        key = f"{name}.{part}" if part else name
        if key not in self._packed:
            self._packed[key] = self._pack(key, weight)
        return write.add(
            "MatMulNBits",
            x,
            *self._packed[key],
            *(("", "", bias) if bias else ()),
            into=into,
            domain=DOMAIN,
            K=steps.shape[1],
            N=steps.shape[0],
            bits=8,
            block_size=weight.block,
            accuracy_level=4,
        )

    def _pack(self, name: str, weight: Stored) -> tuple[str, str]:
        """The kernel's initializers: uint8[outputs, blocks, block] and float32[outputs, blocks]."""
        steps, scales = weight.rows()
        held = np.full((len(steps), scales.shape[1] * weight.block), _ZERO, np.uint8)
        held[:, : steps.shape[1]] = steps.astype(np.int16) + _ZERO
        names = []
        for part, value in (("packed", held.reshape(*scales.shape, weight.block)), ("scales", scales)):
            names.append(self._builder.name(f"streamcell.int8.{name}.{part}"))
            tensor = numpy_helper.from_array(np.ascontiguousarray(value), names[-1])
            self._model.graph.initializer.append(tensor)
        return names[0], names[1]


class _Int8Products:
    """`Products` if x·Wᵀ is there already."""

    def __init__(self, write: NodeBuilder, cell: Cell, of_x: str, of_h: _OfState) -> None:
        self._write, self._outputs = write, GATES[cell.op] * cell.hidden
        self._of_x, self._of_h = of_x, of_h

    def both(self, h: str) -> str:
        """See `Products`."""
        return self._write.add("Add", self._of_x, self._of_h(self._write, h, 0, self._outputs))

    def apart(self, h: str) -> tuple[str, str]:
        """See `Products`."""
        return self._of_x, self._of_h(self._write, h, 0, self._outputs)

    def of_x(self) -> str:
        """See `Products`."""
        return self._of_x

    def plus(self, value: str, h: str, begin: int, end: int) -> str:
        """See `Products`."""
        return self._write.add("Add", value, self._of_h(self._write, h, begin, end))


def _live(write: NodeBuilder, of_x: str, lengths: str) -> str:
    """bool[time, batch, 1]: whether a row's timesteps are not yet over."""
    zero, one = (write.scalar(number) for number in (0, 1))
    time = write.squeeze(
        write.add("Slice", write.add("Shape", of_x), write.constant([0]), write.constant([1])), 0
    )
    places = write.reshape(write.add("Range", zero, time, one), -1, 1, 1)
    ends = write.reshape(write.add("Cast", lengths, to=TensorProto.INT64), 1, -1, 1)
    return write.add("Less", places, ends)
