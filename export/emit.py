"""A whole model of the project as a graph, and the signature that lists its inputs, outputs and states."""

from __future__ import annotations

from typing import Literal, cast

import onnx

from streamcell.card import Signature, State, Tensor
from streamcell.models import (
    KINDS,
    MLP,
    Convolutional,
    Forecaster,
    Listener,
    Recurrent,
    Seq2Seq,
    SequenceModel,
    Wrapped,
)

from .bands import emit_bands
from .convolution import emit_convolutions
from .dense import Dense, Scaling, emit_activation, emit_blocks
from .errors import ExportError
from .graph import GraphBuilder
from .lags import emit_lags, emit_restored
from .names import BATCH, LENGTHS, TIME, X, Y
from .recurrent import emit_layers
from .seq2seq import emit_seq2seq
from .voices import emit_voices

_Distribution = Literal["bernoulli_logits", "categorical_logits", "real"]


def emit_model(
    model: SequenceModel, *, name: str, version: str, lengths: bool = True, fold: bool = True
) -> tuple[onnx.ModelProto, Signature]:
    """The graph of one of the project's own models.

    Inputs are x float32[batch, time, input], for a model with states `lengths` int32[batch] (unless turned off)
    and the states under their own names, with their batch axis if the model has it; outputs are y
    float32[batch, time, output] and each state as `NAME_next`. What y holds beyond a row's length is unspecified
    (masking it would cost every single step several nodes). A length must be at least 1: ONNX Runtime zeroes a
    recurrent state at 0.

    Args:
        model: in eval mode.
        name, version: the graph's and its producer's.
        lengths: whether a graph with states takes `lengths`.
        fold: make the scaling of x part of the first weights; else x is scaled first, as products in int8 want it,
            in which features share a scale.

    Raises:
        ExportError: `model` is none of the project's own kinds.
    """
    if isinstance(model, Seq2Seq):
        return emit_seq2seq(model, name=name, version=version, lengths=lengths)
    inner = model.inner if isinstance(model, Wrapped) else model
    if not isinstance(inner, (MLP, Recurrent, Convolutional)):
        raise ExportError(not_ours(inner))
    graph = GraphBuilder(name)
    x = graph.input(X, "float32", [BATCH, TIME, model.input_size])
    signature = _signature(model, LENGTHS if lengths and model.state_names else None)
    if signature.lengths is not None:
        graph.input(LENGTHS, "int32", [BATCH])
    for state in signature.states:
        graph.input(state.input, "float32", _dims(state))
    if isinstance(model, Forecaster):
        features, base = emit_lags(graph, model, x, signature)
        of_inner = signature.model_copy(update={"states": signature.states[: len(inner.state_names)]})
        y = emit_restored(graph, model, _emit_whole(graph, inner, features, of_inner, fold), base)
    else:
        if isinstance(model, Listener):
            x = emit_bands(graph, model, x)
        y = _emit_whole(graph, inner, x, signature, fold)
    graph.rename(y, Y)
    graph.output(Y, "float32", [BATCH, TIME, model.output_size])
    for state in signature.states:
        graph.output(state.output, "float32", _dims(state))
    return graph.build(version), signature


def _emit_whole(
    graph: GraphBuilder, model: MLP | Recurrent | Convolutional, x: str, signature: Signature, fold: bool
) -> str:
    """A model without its wrapper: x → y, both float32[batch, time, features]; its states are inputs."""
    scaling = Scaling.of(model.input_affine)
    if scaling is not None and not (fold and scaling.folds):
        x, scaling = scaling.emit(graph, x, "input_affine"), None
    if isinstance(model, Recurrent):
        x = emit_layers(graph, model, x, scaling, signature)
        y = _emit_head(graph, model, x, None)
        return graph.node("Transpose", [y], "y.batch_first", perm=[1, 0, 2])
    if isinstance(model, MLP):
        x, scaling = emit_blocks(graph, model, x, scaling)
    else:
        x, scaling = emit_convolutions(graph, model, x, scaling, signature), None
    return _emit_head(graph, model, x, scaling)


def not_ours(module: object) -> str:
    """The error text for a module that is none of the project's kinds."""
    kinds = ", ".join(kind.__name__ for kind in KINDS.values())
    return (
        f"{type(module).__name__} is none of the project's own models ({kinds}); "
        "export a module of your own with export_module"
    )


def _dims(state: State) -> list[str | int]:
    return [*state.shape[: state.batch_axis], BATCH, *state.shape[state.batch_axis :]]


def _signature(model: SequenceModel, lengths: str | None) -> Signature:
    # The card has no word for quantiles; its training section names them.
    distribution = (
        None if model.distribution == "quantiles" else cast("_Distribution | None", model.distribution)
    )
    return Signature(
        inputs=(Tensor(name=X, dtype="float32", step_shape=(model.input_size,)),),
        outputs=(
            Tensor(name=Y, dtype="float32", step_shape=(model.output_size,), distribution=distribution),
        ),
        states=tuple(
            State(
                input=name, output=f"{name}_next", dtype="float32", shape=shape, batch_axis=model.state_axis
            )
            for name, shape in zip(model.state_names, model.state_shapes, strict=True)
        ),
        layout="batch_time",
        lengths=lengths,
    )


def _emit_head(graph: GraphBuilder, model: SequenceModel, x: str, scaling: Scaling | None) -> str:
    """Head, output activation and output scaling; without an activation the scaling is part of the head."""
    after = Scaling.of(model.output_affine)
    head = Dense.of(model.head).after(scaling)
    if model.voices is not None:
        y = emit_voices(graph, model.voices, head.emit(graph, x, "head"))
        return y if after is None else after.emit(graph, y, "output_affine")
    if model.output_activation == "identity":
        return head.then(after).emit(graph, x, "head")
    y = emit_activation(graph, head.emit(graph, x, "head"), model.output_activation, "output")
    return y if after is None else after.emit(graph, y, "output_affine")
