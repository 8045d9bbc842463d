"""The served model as Triton's ONNX Runtime back end takes it: one timestep a request, the batch axis first.

Triton's sequence batcher keeps an implicit state by sequence and joins states along their first axis. The file gets one
state that holds all of the model's, `[batch, floats]`. It is cut up before the graph and put together after it; the
graph between, its weights included, is the served one.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from streamcell.card import Signature, State
from streamcell.card.graphs.node_builder import NodeBuilder

from .triton_process import PeerError

STATE, NEXT_STATE = "state", "state_next"
_ONE = numpy_helper.from_array(np.ones(1, np.int32))


def floats(signature: Signature) -> int:
    """How many floats the one state has."""
    return sum(math.prod(state.shape) for state in signature.states)


def one_state(model: onnx.ModelProto, signature: Signature) -> onnx.ModelProto:
    """`model` with other inputs and outputs: one step, `[batch, *step]`, and one state, `[batch, floats]`.

    Args:
        model: of the layout `batch_time`, with one input and one output, and float32 states that begin at 0 and that
            the graph divides into layers, as ours do.
        signature: the model's.

    Raises:
        PeerError: the model is another.
    """
    given = onnx.ModelProto.FromString(model.SerializeToString())
    graph = given.graph
    x, y = signature.inputs[0], signature.outputs[0]
    border = {value.name: f"inner.{value.name}" for value in (*graph.input, *graph.output)}
    for node in graph.node:
        node.input[:] = [border.get(name, name) for name in node.input]
        node.output[:] = [border.get(name, name) for name in node.output]
    before = NodeBuilder(given, "before", reserved=(*border, *border.values(), STATE, NEXT_STATE))
    after = before.beside("after")
    before.unsqueeze(x.name, 1, into=border[x.name])
    if signature.lengths is not None:
        one = before.add("Constant", value=_ONE)
        batch = before.add("Shape", x.name, start=0, end=1)
        before.add("Expand", one, batch, into=border[signature.lengths])
    sizes, cut, joined = _layers(graph, signature, border)
    for part, layer in zip(before.split(STATE, sizes, axis=1), cut, strict=True):
        before.unsqueeze(part, 0, into=layer)
    after.squeeze(border[y.name], 1, into=y.name)
    after.add("Concat", *(after.squeeze(layer, 0) for layer in joined), into=NEXT_STATE, axis=1)
    nodes = [*before.nodes, *graph.node, *after.nodes]
    used = {name for node in nodes for name in node.input}
    found = helper.make_model(
        helper.make_graph(
            nodes,
            graph.name,
            [_value(x.name, x.step_shape), _value(STATE, (floats(signature),))],
            [_value(y.name, y.step_shape), _value(NEXT_STATE, (floats(signature),))],
            initializer=[tensor for tensor in graph.initializer if tensor.name in used],
        ),
        opset_imports=given.opset_import,
        ir_version=given.ir_version,
    )
    onnx.checker.check_model(found, full_check=True)
    return found


def _layers(
    graph: onnx.GraphProto, signature: Signature, border: dict[str, str]
) -> tuple[list[int], list[str], list[str]]:
    """Take out the nodes that divide the states into layers and those that join them.

    A layer then takes its part of the one state, `[batch, hidden]`, as `[1, batch, hidden]` without a copy.

    Returns:
        The layers' floats, their values before the step, and those after it, in the order of the states.
    """
    sizes: list[int] = []
    before: list[str] = []
    after: list[str] = []
    for state in signature.states:
        divides = [node for node in graph.node if border[state.input] in node.input]
        joins = [node for node in graph.node if border[state.output] in node.output]
        ends = [node.op_type for node in (*divides, *joins)]
        if ends != ["Split", "Concat"] or not _zero_floats(state) or signature.layout != "batch_time":
            raise PeerError(f"the peer cannot serve a model with the state {state.input!r}")
        before += divides[0].output
        after += joins[0].input
        sizes += [math.prod(state.shape[1:])] * state.shape[0]
        for node in (*divides, *joins):
            graph.node.remove(node)
    return sizes, before, after


def _zero_floats(state: State) -> bool:
    """Whether it is float32[layers, batch, hidden] and begins at 0."""
    return state.dtype == "float32" and state.batch_axis == 1 and state.initial == 0.0


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
