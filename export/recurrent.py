"""Recurrent layers as the ONNX operators RNN, LSTM and GRU (operator specification, opset 14).

The operators run on [time, batch, features]; W is [1, gates·hidden, input], R [1, gates·hidden, hidden] and
B [1, 2·gates·hidden], the biases of W and then those of R.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamcell.models import GRULayer, LSTMLayer, RecurrentLayer, RNNLayer

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


def emit_layer(
    graph: GraphBuilder,
    layer: RecurrentLayer,
    x: str,
    states: Sequence[str],
    *,
    name: str,
    scaling: Scaling | None = None,
    lengths: str = "",
) -> tuple[str, list[str]]:
    """One layer.

    Args:
        x: float32[time, batch, input].
        states: float32[1, batch, hidden], one for each of the layer's state names.
        name: prefix of the names of all its tensors.
        scaling: what comes before the layer, folded into its input weights.
        lengths: name of int32[batch], "" for none.

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
    weights = {
        "W": _reorder(into.weight, order, hidden),
        "R": _reorder(as_float64(layer.weight_hh), order, hidden),
        "B": biases,
    }
    constants = [
        graph.constant(f"{name}.{key}", value[None].astype(np.float32)) for key, value in weights.items()
    ]
    outputs = [f"{name}.y", *(f"{name}.{state}_next" for state in layer.state_names)]
    graph.nodes(op, [x, *constants, lengths, *states], outputs, name, **attributes)
    return outputs[0], outputs[1:]


def _reorder(value: Float64, order: Sequence[int], hidden: int) -> Float64:
    return np.concatenate([value[gate * hidden : (gate + 1) * hidden] for gate in order])
