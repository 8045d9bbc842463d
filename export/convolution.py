"""Causal convolutions as matrix products over their taps, with the input history as a state.

Why not the operator Conv: at one timestep a row it has one column to compute for each row of the batch, so a
batch is as many products of a matrix and a vector. Side by side, the taps of all rows are one matrix product,
and the tensors stay [batch, time, channels].
"""

from __future__ import annotations

from typing import cast

from torch import nn

from streamcell.card import Signature
from streamcell.models import TCN, CausalConv, Convolutional

from .dense import Dense, Scaling, batch_norm, emit_activation
from .graph import GraphBuilder
from .history import emit_last_steps, emit_slice
from .tensors import as_float64


def emit_convolutions(
    graph: GraphBuilder, model: Convolutional, x: str, scaling: Scaling | None, signature: Signature
) -> str:
    """The layers of a CNN or TCN: x float32[batch, time, input] → float32[batch, time, channels].

    A history holds the scaled x, as it does in PyTorch, so the scaling is not folded. The state inputs are
    there; the state outputs are made under their names.
    """
    if scaling is not None:
        x = scaling.emit(graph, x, "input_affine")

    def convolve(x: str, index: int) -> str:
        state = signature.states[index]
        return _emit(graph, model.layer(index), x, state.input, state.output, f"layer{index}", signature)

    if not isinstance(model, TCN):
        for index in range(len(model.layers)):
            x = convolve(x, index)
        return x
    for block, skip in enumerate(model.skips):
        inner = convolve(convolve(x, 2 * block), 2 * block + 1)
        if isinstance(skip, nn.Linear):
            x = Dense.of(skip).emit(graph, x, f"block{block}.skip")
        x = graph.node("Add", [x, inner], f"block{block}.residual")
        x = emit_activation(graph, x, model.activation, f"block{block}")
    return x


def _emit(
    graph: GraphBuilder,
    layer: CausalConv,
    x: str,
    history: str,
    history_next: str,
    name: str,
    signature: Signature,
) -> str:
    """One layer; batch normalisation is folded into its weights."""
    whole = graph.node("Concat", [history, x], f"{name}.whole", axis=1)
    emit_last_steps(graph, whole, layer.history, signature.lengths, history_next)
    (dilation,) = layer.conv.dilation
    (taps,) = layer.conv.kernel_size
    windows = [
        emit_slice(graph, whole, tap * dilation, -(taps - 1 - tap) * dilation, f"{name}.tap{tap}")
        for tap in range(taps - 1)
    ]
    side_by_side = graph.node("Concat", [*windows, x], f"{name}.taps", axis=2)
    # float64[out, in, taps] → [out, taps·in].
    weight = as_float64(layer.conv.weight).transpose(0, 2, 1)
    bias = as_float64(cast(nn.Parameter, layer.conv.bias))
    dense = Dense(weight.reshape(len(weight), -1), bias)
    if layer.norm is not None:
        dense = dense.then(batch_norm(layer.norm))
    return emit_activation(graph, dense.emit(graph, side_by_side, name), layer.activation, name)
