"""Recurrent layers as the ONNX operators RNN, LSTM and GRU (operator specification, opset 14).

The operators run on [time, batch, features]; W is [1, gates·hidden, input], R [1, gates·hidden, hidden] and
B [1, 2·gates·hidden], the biases of W and then those of R.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import nn

from streamcell.card import Signature
from streamcell.models import GRULayer, LSTMLayer, Recurrent, RecurrentLayer, RNNLayer

from .dense import Dense, Scaling
from .errors import ExportError
from .graph import GraphBuilder
from .tensors import Float64, as_float64

# ONNX's gate at each place, as an index into the layer's own order.
# LSTM: the layer has i, f, g, o; ONNX wants i, o, f, c. GRU: the layer has r, z, n; ONNX wants z, r, h.
GATES: dict[str, tuple[int, ...]] = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}

OPS = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid"}


def operator(layer: RecurrentLayer) -> tuple[str, dict[str, Any]]:
    """The operator that computes a layer's formula, and its attributes.

    Raises:
        ExportError: the layer is of no known type.
    """
    attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
    if isinstance(layer, RNNLayer):
        if layer.nonlinearity != "tanh":
            attributes["activations"] = [OPS[layer.nonlinearity]]
        return "RNN", attributes
    if isinstance(layer, LSTMLayer):
        if layer.candidate != "tanh":
            # f for the gates, g for the candidate, h for the output.
            attributes["activations"] = ["Sigmoid", OPS[layer.candidate], "Tanh"]
        return "LSTM", attributes
    if isinstance(layer, GRULayer):
        return "GRU", {**attributes, "linear_before_reset": int(layer.reset_after)}
    raise ExportError(f"no operator for a layer of type {type(layer).__name__}")


def emit_layers(
    graph: GraphBuilder, model: Recurrent, x: str, scaling: Scaling | None, signature: Signature
) -> str:
    """The stack of a model: x float32[batch, time, input] → float32[time, batch, hidden].

    The state inputs are there; the state outputs are made under their names.
    """
    count = model.num_layers
    before = [split_layers(graph, state.input, count) for state in signature.states]
    after: list[list[str]] = [[] for _ in signature.states]
    if scaling is not None and model.adds_input(0):
        # The residual path needs the scaled x itself.
        x, scaling = scaling.emit(graph, x, "input_affine"), None
    x = graph.node("Transpose", [x], "x.time_first", perm=[1, 0, 2])
    for index in range(count):
        name = f"layer{index}"
        inner = x if index == 0 else _emit_norm(graph, model, x, index - 1)
        y, states = emit_layer(
            graph,
            model.layer(index),
            inner,
            [parts[index] for parts in before],
            name=name,
            scaling=scaling if index == 0 else None,
            lengths=signature.lengths or "",
            # Layers that share their weights share the file's.
            weights=f"layer{min(index, len(model.layers) - 1)}",
        )
        y = graph.node("Squeeze", [y, graph.axes(1)], f"{name}.squeeze")
        x = graph.node("Add", [x, y], f"{name}.residual") if model.adds_input(index) else y
        for parts, part in zip(after, states, strict=True):
            parts.append(part)
    for state, parts in zip(signature.states, after, strict=True):
        if count == 1:
            graph.rename(parts[0], state.output)
        else:
            graph.node("Concat", parts, state.output, axis=0)
    return _emit_norm(graph, model, x, count - 1)


def _emit_norm(graph: GraphBuilder, model: Recurrent, x: str, index: int) -> str:
    """Layer normalisation over the features of x, if the model has it."""
    if model.norms is None:
        return x
    norm = cast(nn.LayerNorm, model.norms[index])
    constants = [
        graph.constant(f"norm{index}.{key}", as_float64(value).astype(np.float32))
        for key, value in (("scale", norm.weight), ("bias", norm.bias))
    ]
    return graph.node("LayerNormalization", [x, *constants], f"norm{index}", axis=-1, epsilon=norm.eps)


def split_layers(graph: GraphBuilder, state: str, count: int) -> list[str]:
    """float32[layers, batch, hidden] → float32[1, batch, hidden] for each layer; one layer needs no node."""
    if count == 1:
        return [state]
    sizes = graph.constant(f"split_{count}", np.ones(count, np.int64))
    names = [f"layer{index}.{state}" for index in range(count)]
    return list(graph.nodes("Split", [state, sizes], names, f"{state}.split", axis=0))


def emit_layer(
    graph: GraphBuilder,
    layer: RecurrentLayer,
    x: str,
    states: Sequence[str],
    *,
    name: str,
    scaling: Scaling | None = None,
    lengths: str = "",
    weights: str = "",
) -> tuple[str, list[str]]:
    """One layer.

    Args:
        x: float32[time, batch, input].
        states: float32[1, batch, hidden], one for each of the layer's state names.
        name: prefix of the names of all its tensors.
        scaling: the scaling before the layer, folded into its input weights.
        lengths: name of int32[batch], "" for none.
        weights: prefix of the names of its weights, if it is not `name`.

    Returns:
        y float32[time, 1, batch, hidden], as the operator gives it, and the states after the last step.
    """
    op, attributes = operator(layer)
    hidden = layer.hidden_size
    into = Dense(as_float64(layer.weight_ih), as_float64(layer.bias)).after(scaling)
    bias_hh = np.zeros_like(into.bias)
    if isinstance(layer, GRULayer) and layer.reset_after:
        bias_hh[2 * hidden :] = as_float64(layer.bias_hn)
    order = GATES[op]
    biases = np.concatenate([_reorder(into.bias, order, hidden), _reorder(bias_hh, order, hidden)])
    values = {
        "W": _reorder(into.weight, order, hidden),
        "R": _reorder(as_float64(layer.weight_hh), order, hidden),
        "B": biases,
    }
    constants = [
        graph.constant(f"{weights or name}.{key}", value[None].astype(np.float32))
        for key, value in values.items()
    ]
    outputs = [f"{name}.y", *(f"{name}.{state}_next" for state in layer.state_names)]
    graph.nodes(op, [x, *constants, lengths, *states], outputs, name, **attributes)
    return outputs[0], outputs[1:]


def _reorder(value: Float64, order: Sequence[int], hidden: int) -> Float64:
    return np.concatenate([value[gate * hidden : (gate + 1) * hidden] for gate in order])
