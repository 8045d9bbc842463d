"""A whole model of the project as a graph, and the signature that says what crosses its border."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import onnx

from streamcell.card import Signature, State, Tensor
from streamcell.models import GRU, LSTM, MLP, RNN, RecurrentLayer, SequenceModel

from .dense import Dense, Scaling, emit_activation, emit_blocks
from .errors import ExportError
from .graph import GraphBuilder
from .recurrent import emit_layer

X, Y, LENGTHS = "x", "y", "lengths"
BATCH, TIME = "batch", "time"

Recurrent = RNN | LSTM | GRU
_Distribution = Literal["bernoulli_logits", "categorical_logits", "real"]


def emit_model(
    model: SequenceModel, *, name: str, version: str, lengths: bool = True
) -> tuple[onnx.ModelProto, Signature]:
    """The graph of one of the project's own models.

    Inputs are x float32[batch, time, input], for a recurrent model `lengths` int32[batch] (unless turned off)
    and the states float32[layers, batch, hidden] under their own names; outputs are y float32[batch, time,
    output] and each state as `NAME_next`. What y holds beyond a row's length is unspecified (masking it would
    cost every single step several nodes). A length must be at least 1: ONNX Runtime zeroes the state at 0.

    Raises:
        ExportError: `model` is none of the project's own kinds.
    """
    if not isinstance(model, (MLP, RNN, LSTM, GRU)):
        raise ExportError(
            f"{type(model).__name__} is none of the project's own models (MLP, RNN, LSTM, GRU); "
            "export a module of your own with export_module"
        )
    graph = GraphBuilder(name)
    x = graph.input(X, "float32", [BATCH, TIME, model.input_size])
    scaling = Scaling.of(model.input_affine)
    if scaling is not None and not scaling.folds:
        x, scaling = scaling.emit(graph, x, "input_affine"), None

    if isinstance(model, MLP):
        signature = _signature(model, (), None)
        x, scaling = emit_blocks(graph, model, x, scaling)
        y = _emit_head(graph, model, x, scaling)
    else:
        signature = _signature(model, _states(model), LENGTHS if lengths else None)
        if lengths:
            graph.input(LENGTHS, "int32", [BATCH])
        x = _emit_layers(graph, model, x, scaling, signature)
        y = _emit_head(graph, model, x, None)
        y = graph.node("Transpose", [y], "y.batch_first", perm=[1, 0, 2])
    graph.rename(y, Y)
    graph.output(Y, "float32", [BATCH, TIME, model.output_size])
    for state in signature.states:
        graph.output(state.output, "float32", [state.shape[0], BATCH, state.shape[1]])
    return graph.build(version), signature


def _states(model: Recurrent) -> tuple[State, ...]:
    shape = (model.num_layers, model.hidden_size)
    return tuple(
        State(input=name, output=f"{name}_next", dtype="float32", shape=shape, batch_axis=1)
        for name in model.state_names
    )


def _signature(model: SequenceModel, states: tuple[State, ...], lengths: str | None) -> Signature:
    distribution = cast("_Distribution | None", model.distribution)
    return Signature(
        inputs=(Tensor(name=X, dtype="float32", step_shape=(model.input_size,)),),
        outputs=(
            Tensor(name=Y, dtype="float32", step_shape=(model.output_size,), distribution=distribution),
        ),
        states=states,
        layout="batch_time",
        lengths=lengths,
    )


def _emit_layers(
    graph: GraphBuilder, model: Recurrent, x: str, scaling: Scaling | None, signature: Signature
) -> str:
    """x float32[batch, time, input] → float32[time, batch, hidden]; the state outputs under their names."""
    count = model.num_layers
    before: list[list[str]] = []
    for state in signature.states:
        graph.input(state.input, "float32", [count, BATCH, model.hidden_size])
        before.append(_split(graph, state.input, count))
    x = graph.node("Transpose", [x], "x.time_first", perm=[1, 0, 2])
    after: list[list[str]] = [[] for _ in signature.states]
    for index, module in enumerate(model.layers):
        y, states = emit_layer(
            graph,
            cast(RecurrentLayer, module),
            x,
            [parts[index] for parts in before],
            name=f"layer{index}",
            scaling=scaling if index == 0 else None,
            lengths=signature.lengths or "",
        )
        x = graph.node("Squeeze", [y, graph.axes(1)], f"layer{index}.squeeze")
        for parts, part in zip(after, states, strict=True):
            parts.append(part)
    for state, parts in zip(signature.states, after, strict=True):
        if count == 1:
            graph.rename(parts[0], state.output)
        else:
            graph.node("Concat", parts, state.output, axis=0)
    return x


def _split(graph: GraphBuilder, state: str, count: int) -> list[str]:
    """float32[layers, batch, hidden] → float32[1, batch, hidden] for each layer; one layer needs no node."""
    if count == 1:
        return [state]
    sizes = graph.constant(f"split_{count}", np.ones(count, np.int64))
    return list(
        graph.nodes(
            "Split",
            [state, sizes],
            [f"layer{index}.{state}" for index in range(count)],
            f"{state}.split",
            axis=0,
        )
    )


def _emit_head(graph: GraphBuilder, model: SequenceModel, x: str, scaling: Scaling | None) -> str:
    """Head, output activation and output scaling; the scaling is folded where nothing stands between."""
    after = Scaling.of(model.output_affine)
    head = Dense.of(model.head).after(scaling)
    if model.output_activation == "identity":
        return head.then(after).emit(graph, x, "head")
    y = emit_activation(graph, head.emit(graph, x, "head"), model.output_activation, "output")
    return y if after is None else after.emit(graph, y, "output_affine")
