"""What in a graph makes an answer depend on the other rows of a batch, or on how timesteps are joined."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper, numpy_helper

from .edit import subgraphs

_RECURRENT = {"LSTM": ("initial_h", "initial_c"), "GRU": ("initial_h",), "RNN": ("initial_h",)}
_QUANTISED = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"})
_ALONG_AXIS = frozenset({"Softmax", "LogSoftmax", "CumSum", "ArgMax", "ArgMin", "TopK", "Hardmax"})
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"})


def mixes_rows(graph: onnx.GraphProto, batch_axis: int) -> list[str]:
    """The likely causes, one sentence a node, where a row's answer depends on its neighbours."""
    return [text for node, known in _nodes(graph) if (text := _row_cause(node, known, batch_axis))]


def mixes_steps(graph: onnx.GraphProto) -> list[str]:
    """The likely causes, one sentence a node, where an answer depends on how timesteps are joined."""
    return [text for node, _ in _nodes(graph) if (text := _step_cause(node))]


def forgets(graph: onnx.GraphProto) -> list[str]:
    """The recurrent nodes that begin every run at zero, one sentence each: no way of running them is right."""
    causes = []
    for node, _ in _nodes(graph):
        for place, name in enumerate(_RECURRENT.get(node.op_type, ()), start=5):
            if not (node.input[place : place + 1] and node.input[place]):
                causes.append(
                    f"{_called(node)} has no {name}: it starts at zero in every run and keeps no state; "
                    f"export it with {name} as an input and its last value as an output"
                )
    return causes


def _nodes(
    graph: onnx.GraphProto, outer: dict[str, list[int]] | None = None
) -> Iterator[tuple[onnx.NodeProto, dict[str, list[int]]]]:
    """Every node with the small constants that it can see."""
    known = dict(outer or {})
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) <= 1 and sum(tensor.dims) <= 16:
            known[tensor.name] = numpy_helper.to_array(tensor).reshape(-1).tolist()
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.INT64:
                    known[node.output[0]] = numpy_helper.to_array(attribute.t).reshape(-1).tolist()
                elif attribute.name == "value_ints":
                    known[node.output[0]] = list(attribute.ints)
    for node in graph.node:
        yield node, known
        for body in subgraphs(node):
            yield from _nodes(body, known)


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or next(filter(None, node.output), '')!r}"


def _attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _row_cause(node: onnx.NodeProto, known: dict[str, list[int]], batch_axis: int) -> str:
    if node.op_type in _QUANTISED:
        return f"{_called(node)} sees all rows: it takes one scale from the whole batch"
    if node.op_type.startswith("Reduce"):
        axes = _attribute(node, "axes") or known.get(node.input[1] if len(node.input) > 1 else "")
        if not isinstance(axes, list):
            return f"{_called(node)} may reduce over all axes, the batch among them"
        return f"{_called(node)} reduces over the batch" if batch_axis in axes else ""
    if node.op_type in _ALONG_AXIS:
        axis = _attribute(node, "axis")
        if axis is None and len(node.input) > 1:
            axis = (known.get(node.input[1]) or [None])[0]  # type: ignore[list-item]
        return f"{_called(node)} works along the batch" if axis == batch_axis else ""
    if node.op_type == "BatchNormalization" and _attribute(node, "training_mode", 0):
        return f"{_called(node)} is in training mode: it takes mean and variance from the whole batch"
    if node.op_type == "Reshape" and (shape := known.get(node.input[1])) and shape[0] > 0:
        return f"{_called(node)} has a fixed first size of {shape[0]}"
    return f"{_called(node)} draws for the whole batch" if node.op_type in _RANDOM else ""


def _step_cause(node: onnx.NodeProto) -> str:
    if node.op_type in _RECURRENT:
        direction = _attribute(node, "direction", b"forward")
        if direction == b"bidirectional":
            return f"{_called(node)} is bidirectional"
        return f"{_called(node)} runs in reverse" if direction == b"reverse" else ""
    if node.op_type in _QUANTISED:
        return f"{_called(node)} sees all timesteps: it takes one scale from the whole chunk"
    pads = _attribute(node, "pads", [])
    if node.op_type == "Conv" and isinstance(pads, list) and any(pads):
        return f"{_called(node)} pads with zeros"
    return ""
