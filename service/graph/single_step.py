"""The graph of a model's single steps: time fixed at 1, its recurrent operators written out.

ONNX Runtime's CUDA LSTM, GRU and RNN rebuild cuDNN's descriptors at every call and copy the lengths to the host, which
costs more than one timestep's arithmetic and cannot be part of a CUDA graph.
"""

from __future__ import annotations

from dataclasses import replace

import onnx
from onnx import helper

from streamcell.card.graphs.edit import replace_nodes
from streamcell.card.graphs.node_builder import NodeBuilder
from streamcell.card.graphs.recurrent_cells import (
    FloatProducts,
    cell_of,
    input_of,
    lengths_values,
    write_single,
)
from streamcell.card.graphs.shapes import inferred_sizes

from .pooled import TIME, Pooled


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
    model = at_one_step(pooled.model)
    ones = lengths_values(model.graph, lengths)
    shapes = inferred_sizes(model)
    builder = NodeBuilder(model)
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in model.graph.node:
        cell = cell_of(node) if shapes.get(input_of(node, 0), ())[:1] == (1,) else None
        if cell is None or input_of(node, 4) not in ones:
            nodes.append(node)
            continue
        found = True
        write = builder.beside(f"streamcell.step.{node.name or node.output[0]}")
        write_single(write, node, cell, FloatProducts(write, cell, write.squeeze(node.input[0], 0)))
        nodes.extend(write.nodes)
    if not found:
        return None
    replace_nodes(model.graph, nodes)
    return replace(pooled, model=model)


def has_time(model: onnx.ModelProto) -> bool:
    """Whether a pooled `model` takes any number of timesteps."""
    return any(
        dim.dim_param == TIME for value in model.graph.input for dim in value.type.tensor_type.shape.dim
    )


def at_one_step(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a pooled `model` whose number of timesteps is 1; what then moves nothing becomes a Reshape."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == TIME:
                dim.dim_value = 1
    shapes = inferred_sizes(copy)
    builder = NodeBuilder(copy)
    nodes = [_moved(node, shapes.get(input_of(node, 0), ()), builder) or node for node in copy.graph.node]
    replace_nodes(copy.graph, nodes)
    return copy


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
