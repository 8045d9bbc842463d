"""What in a graph makes an answer depend on the other rows of a batch, or on how timesteps are joined."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from streamcell.card import Signature
from streamcell.card.graphs.edit import subgraphs
from streamcell.card.graphs.shapes import inferred_shapes
from streamcell.service.errors import shown

from .index_trace import Scope, attribute_of
from .interface import axes_before_step

_BOTH = ("initial_h", "initial_c")
_RECURRENT = {"LSTM": _BOTH, "DynamicQuantizeLSTM": _BOTH, "GRU": ("initial_h",), "RNN": ("initial_h",)}
_QUANTISED = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"})
_ALONG_AXIS = frozenset({"Softmax", "LogSoftmax", "CumSum", "ArgMax", "ArgMin", "TopK", "Hardmax"})
# Operators whose input of that place is a shape.
_SHAPED = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"})


def mixes_rows(model: onnx.ModelProto, signature: Signature) -> list[str]:
    """The likely causes, one sentence for each node, if a row's output depends on its neighbours."""
    axes = _Axes(model, signature, "batch")
    return [text for node, scope in _nodes(model.graph) if (text := _row_cause(node, scope, axes))]


def mixes_steps(model: onnx.ModelProto, signature: Signature) -> list[str]:
    """The likely causes, one sentence for each node, if an output depends on how timesteps are joined."""
    axes = _Axes(model, signature, "time")
    return [text for node, scope in _nodes(model.graph) if (text := _step_cause(node, scope, axes))]


def fixes_rows(graph: onnx.GraphProto) -> list[str]:
    """The nodes that make a number of rows of their own, one sentence each."""
    return [text for node, scope in _nodes(graph) if (text := _fixed_size(node, scope))]


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


def _nodes(graph: onnx.GraphProto, outer: Scope | None = None) -> Iterator[tuple[onnx.NodeProto, Scope]]:
    """Every node with its scope."""
    scope = Scope(graph, outer)
    for node in graph.node:
        yield node, scope
        for body in subgraphs(node):
            yield from _nodes(body, scope)


def _integers(scope: Scope, node: onnx.NodeProto, place: int) -> list[int] | None:
    """The constant that is a node's input, if it is small and made of whole numbers."""
    value = scope.constant(node.input[place]) if len(node.input) > place else None
    return None if value is None else value.reshape(-1).tolist()


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {shown(node.name or next(filter(None, node.output), ''))}"


class _Axes:
    """Where the batch or the time axis stands in a model's values."""

    def __init__(self, model: onnx.ModelProto, signature: Signature, which: str) -> None:
        lead = axes_before_step(signature.layout)
        self._otherwise = lead.index(which) if which in lead else None
        self._shapes = inferred_shapes(model)
        shapes = [self._shapes.get(tensor.name, ()) for tensor in signature.inputs]
        sizes = {shape[self._otherwise] for shape in shapes if shape and self._otherwise is not None}
        # Open sizes keep their name as shapes are inferred.
        self._names = {size for size in sizes if isinstance(size, str)}

    def is_among(self, axes: list[int], value: str) -> bool:
        """Whether one of these axes of `value`, negative ones counted from the end, is the batch or the time axis."""
        shape = self._shapes.get(value)
        if shape is None or not self._names:
            return self._otherwise in axes
        found = {axis for axis, size in enumerate(shape) if size in self._names}
        unknown = {axis for axis, size in enumerate(shape) if size is None}
        if not found and len(unknown) == 1:  # then it can only be that one, if it is there at all
            found = unknown
        return any(axis % len(shape) in found for axis in axes if -len(shape) <= axis < len(shape))


def _axes_of(node: onnx.NodeProto, scope: Scope) -> list[int] | None:
    """The axes that a node works along; None if that is every axis, or is not known."""
    if node.op_type in _ALONG_AXIS:
        axis = attribute_of(node, "axis")
        default = [] if node.op_type == "CumSum" else [-1]
        return (_integers(scope, node, 1) or default) if axis is None else [int(axis)]
    axes = attribute_of(node, "axes") or _integers(scope, node, 1)
    return axes if isinstance(axes, list) else None


def _row_cause(node: onnx.NodeProto, scope: Scope, axes: _Axes) -> str:
    if node.op_type in _QUANTISED:
        return f"{_called(node)} sees all rows: it takes one scale from the whole batch"
    if node.op_type.startswith("Reduce"):
        reduced = _axes_of(node, scope)
        if reduced is None:
            return f"{_called(node)} may reduce over all axes, the batch among them"
        return f"{_called(node)} reduces over the batch" if axes.is_among(reduced, node.input[0]) else ""
    if node.op_type in _ALONG_AXIS:
        along = axes.is_among(_axes_of(node, scope) or [], node.input[0])
        return f"{_called(node)} works along the batch" if along else ""
    if node.op_type == "BatchNormalization" and attribute_of(node, "training_mode"):
        return f"{_called(node)} is in training mode: it takes mean and variance from the whole batch"
    if text := _fixed_size(node, scope):
        return text
    return f"{_called(node)} draws for the whole batch" if node.op_type in _RANDOM else ""


def _fixed_size(node: onnx.NodeProto, scope: Scope) -> str:
    place = _SHAPED.get(node.op_type)
    shape = None if place is None else _integers(scope, node, place)
    if shape and shape[0] > (0 if node.op_type == "Reshape" else 1):
        return f"{_called(node)} has a fixed first size of {shape[0]}"
    return ""


def _step_cause(node: onnx.NodeProto, scope: Scope, axes: _Axes) -> str:
    if node.op_type in _RECURRENT:
        direction = attribute_of(node, "direction")
        if direction == b"bidirectional":
            return f"{_called(node)} is bidirectional"
        if direction == b"reverse":
            return f"{_called(node)} runs in reverse"
    if node.op_type in _QUANTISED:
        return f"{_called(node)} sees all timesteps: it takes one scale from the whole chunk"
    pads = attribute_of(node, "pads")
    if node.op_type == "Conv" and isinstance(pads, list) and any(pads):
        return f"{_called(node)} pads with zeros"
    if node.op_type == "CumSum" and attribute_of(node, "reverse"):
        return f"{_called(node)} sums in reverse"
    if node.op_type == "CumSum":  # forwards it may begin with the state
        return ""
    if node.op_type.startswith("Reduce") or node.op_type in _ALONG_AXIS:
        along = axes.is_among(_axes_of(node, scope) or [], node.input[0])
        return f"{_called(node)} sees all timesteps of a chunk" if along else ""
    return ""
