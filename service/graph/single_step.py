"""The graph of a model's single steps: time fixed at 1, its recurrent operators written out.

ONNX Runtime's CUDA LSTM, GRU and RNN rebuild cuDNN's descriptors at every call and copy the lengths to the host, which
costs more than one timestep's arithmetic and cannot be part of a CUDA graph.
"""

from __future__ import annotations

from dataclasses import replace

import onnx
from onnx import helper

from .node_builder import NodeBuilder
from .pooled import TIME, Pooled
from .recurrent_cells import ACTIVATIONS, DEFAULTS, GATES, Cell, step
from .shapes import inferred_shapes

# Attributes whose value the written-out form does not depend on.
_UNUSED = frozenset({"hidden_size", "activations", "direction", "layout", "linear_before_reset"})
_PASSES_ON = frozenset({"Cast", "Identity"})


def single_step(pooled: Pooled, lengths: str | None) -> Pooled | None:
    """A copy of `pooled` for runs of one timestep, with every recurrent operator written out that can be.

    Left alone are bidirectional and reversed operators, those with `clip`, `input_forget` or `layout` = 1, with
    activations that take parameters, without initial states, or whose number of timesteps is not the model's.

    Args:
        pooled: a model in its pool.
        lengths: its input of lengths, which are all 1 in such a run.

    Returns:
        None if no operator can be written out.
    """
    model = onnx.ModelProto()
    model.CopyFrom(pooled.model)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == TIME:
                dim.dim_value = 1
    ones = _ones(model.graph, lengths)
    shapes = _shapes(model)
    builder = NodeBuilder(model)
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in model.graph.node:
        shape = shapes.get(_input(node, 0), ())
        cell = _cell(node) if shape[:1] == (1,) else None
        if cell is None or _input(node, 4) not in ones:
            nodes.append(_moved(node, shape, builder) or node)
            continue
        found = True
        write = builder.beside(f"streamcell.step.{node.name or node.output[0]}")
        _write_out(write, node, cell)
        nodes.extend(write.nodes)
    if not found:
        return None
    nodes = [_copy(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return replace(pooled, model=model)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _input(node: onnx.NodeProto, place: int) -> str:
    return node.input[place] if place < len(node.input) else ""


def _ones(graph: onnx.GraphProto, lengths: str | None) -> set[str]:
    """Values that may be used as `sequence_lens`: none, the model's lengths, and casts of these."""
    found = {"", *([lengths] if lengths else [])}
    for node in graph.node:
        if node.op_type in _PASSES_ON and node.input[0] in found:
            found.update(node.output)
    return found


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every value for which it can be inferred; -1 for sizes that are not known."""
    return {
        name: tuple(size if isinstance(size, int) else -1 for size in shape)
        for name, shape in inferred_shapes(model).items()
    }


def _moved(node: onnx.NodeProto, shape: tuple[int, ...], builder: NodeBuilder) -> onnx.NodeProto | None:
    """A Transpose that moves only axes of size 1, as a Reshape, which moves nothing; None for any other node."""
    perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
    if node.op_type != "Transpose" or perm is None or len(perm) != len(shape) or shape.count(-1) > 1:
        return None
    stays = [axis for axis in perm if shape[axis] != 1]
    if stays != sorted(stays):
        return None
    turned = builder.constant([shape[axis] for axis in perm])
    return helper.make_node("Reshape", [node.input[0], turned], list(node.output), name=node.name)


def _cell(node: onnx.NodeProto) -> Cell | None:
    """The cell that `node` computes, if the operator can be written out."""
    if node.op_type not in GATES or node.domain not in ("", "ai.onnx"):
        return None
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    activations = tuple(a.decode() for a in given.get("activations", ())) or DEFAULTS[node.op_type]
    states = [_input(node, 5), *([_input(node, 6)] if node.op_type == "LSTM" else [])]
    if (
        set(given) - _UNUSED
        or given.get("direction", b"forward") != b"forward"
        or given.get("layout", 0)
        or "hidden_size" not in given
        or not ACTIVATIONS.issuperset(activations)
        or len(activations) != len(DEFAULTS[node.op_type])
        or not all(states)
    ):
        return None
    return Cell(
        node.op_type,
        given["hidden_size"],
        activations,
        bool(given.get("linear_before_reset", 0)),
        W=node.input[1],
        R=node.input[2],
        B=_input(node, 3),
        P=_input(node, 7),
    )


def _write_out(write: NodeBuilder, node: onnx.NodeProto, cell: Cell) -> None:
    states = [write.reshape(_input(node, place), -1, cell.hidden) for place in (5, 6) if _input(node, place)]
    after = step(write, cell, write.squeeze(node.input[0], 0), *states)
    outputs = [*node.output, "", ""]
    if outputs[0]:
        write.reshape(after[0], 1, 1, -1, cell.hidden, into=outputs[0])
    for name, value in zip(outputs[1:], after, strict=False):
        if name:
            write.reshape(value, 1, -1, cell.hidden, into=name)
