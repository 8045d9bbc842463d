"""The encoder–decoder as one stateful graph: a Scan over time whose every step splits the batch's rows in two.

A row whose token is a source symbol takes the encoder's step, any other the decoder's. Computing both for every
row and keeping one would double the arithmetic; here the rows are gathered by kind, each kind multiplied by its own
weights, and the products put back in order, so a step costs one stack's arithmetic whatever the mix. What a
token adds to the first layer's gates (its embedding times the input weights of its own stack, and the bias) is
one row of one table. What the decoder pops from a stack adds to them by the decoder's rows alone.
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import onnx

from streamcell.card import Signature, State, Tensor
from streamcell.models import Seq2Seq

from .dense import Dense
from .errors import ExportError
from .graph import GraphBuilder
from .recurrent import split_layers
from .seq2seq_step import Step

_Distribution = Literal["bernoulli_logits", "categorical_logits", "real"]


def emit_seq2seq(
    model: Seq2Seq, *, name: str, version: str, lengths: bool
) -> tuple[onnx.ModelProto, Signature]:
    """As `emit_model`, but x is int64[batch, time]. A token outside the table fails the run.

    Raises:
        ExportError: an output activation or scaling, which logits of symbols have not.
    """
    if model.output_activation != "identity" or model.output_affine is not None:
        raise ExportError(
            "a seq2seq model can only be exported with logits as its output: no activation, no scaling"
        )
    graph = GraphBuilder(name)
    graph.input("x", "int64", ["batch", "time"])
    if lengths:
        graph.input("lengths", "int32", ["batch"])
    signature = _signature(model, "lengths" if lengths else None)
    for state in signature.states:
        graph.input(state.input, "float32", [state.shape[0], "batch", model.hidden_size])
    outputs, after = _scan(graph, model, signature)
    graph.rename(Dense.of(model.head).emit(graph, outputs, "head"), "y")
    graph.output("y", "float32", ["batch", "time", model.output_size])
    for state, whole in zip(signature.states, after, strict=True):
        graph.rename(whole, state.output)
        graph.output(state.output, "float32", [state.shape[0], "batch", model.hidden_size])
    return graph.build(version), signature


def _signature(model: Seq2Seq, lengths: str | None) -> Signature:
    distribution = cast("_Distribution | None", model.distribution)
    return Signature(
        inputs=(Tensor(name="x", dtype="int64", index_ranges=((0, model.input_size - 1),)),),
        outputs=(
            Tensor(name="y", dtype="float32", step_shape=(model.output_size,), distribution=distribution),
        ),
        states=tuple(
            State(input=name, output=f"{name}_next", dtype="float32", shape=shape, batch_axis=1)
            for name, shape in zip(model.state_names, model.state_shapes, strict=True)
        ),
        layout="batch_time",
        lengths=lengths,
    )


def _scan(graph: GraphBuilder, model: Seq2Seq, signature: Signature) -> tuple[str, list[str]]:
    """The loop over time.

    Returns:
        float32[batch, time, hidden], and each state after each row's last step.
    """
    layers = model.num_layers
    names = [f"{state}.{layer}" for state in model.cell_names for layer in range(layers)]
    before = [part for state in model.cell_names for part in _split(graph, state, layers)]
    body = GraphBuilder("step", outer=graph)
    hidden: list[str | int] = ["batch", model.hidden_size]
    if model.stack:
        before.append(_stacked(graph))
    if signature.lengths:
        body.input("t", "int32", [1])
    for name in names:
        body.input(f"{name}.old", "float32", hidden)
    if model.stack:
        body.input("stack.old", "float32", [model.stack, *hidden])
    body.input("token", "int64", ["batch"])

    running = body.node("Less", ["t", signature.lengths], "running") if signature.lengths else None
    top = Step(body, model).emit(names, running)
    if running is not None:
        # Beyond its length a row's states do not change.
        column = body.node("Unsqueeze", [running, graph.axes(1)], "running.column")
        body.node("Add", ["t", graph.constant("one", np.ones(1, np.int32))], "t.next")
        body.output("t.next", "int32", [1])
    for name in names:
        if running is not None:
            body.node("Where", [column, f"{name}.new", f"{name}.old"], f"{name}.kept")
        body.output(f"{name}.new" if running is None else f"{name}.kept", "float32", hidden)
    if model.stack:
        body.output("stack.new", "float32", [model.stack, *hidden])
    # An output of the body may not be two outputs of the loop.
    body.output(body.node("Identity", [top], "top"), "float32", hidden)

    counter = [graph.constant("zero", np.zeros(1, np.int32))] if signature.lengths else []
    ends = ["steps"] if signature.lengths else []
    after = [f"{name}.after" for name in (*names, *(["stack"] if model.stack else []))]
    graph.nodes(
        "Scan",
        [*counter, *before, _checked(graph, model)],
        [*ends, *after, "tops"],
        "scan",
        body=body.graph(),
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    joined = [
        _join(graph, state, after[index * layers : (index + 1) * layers])
        for index, state in enumerate(model.cell_names)
    ]
    return "tops", joined + after[len(names) :]


def _stacked(graph: GraphBuilder) -> str:
    """The stack, and what every step needs to read it by rows: `batch.size` int64[1], `batch.rows` int64[batch]."""
    graph.node("Shape", ["x"], "batch.size", start=0, end=1)
    size = graph.node("Squeeze", ["batch.size", graph.axes(0)], "batch.count")
    zero, one = (graph.constant(f"range.{at}", np.array(at, np.int64)) for at in (0, 1))
    graph.node("Range", [zero, size, one], "batch.rows")
    return "stack"


def _checked(graph: GraphBuilder, model: Seq2Seq) -> str:
    """The tokens, negative ones made too large: Gather would take −1 for the table's last row."""
    negative = graph.node("Less", ["x", graph.constant("zero.token", np.array(0, np.int64))], "x.negative")
    outside = graph.constant("outside", np.array(model.input_size, np.int64))
    return graph.node("Where", [negative, outside, "x"], "x.checked")


def _split(graph: GraphBuilder, state: str, count: int) -> list[str]:
    """float32[layers, batch, hidden] → float32[batch, hidden] for each layer."""
    return [
        graph.node("Squeeze", [layer, graph.axes(0)], f"{state}.{index}")
        for index, layer in enumerate(split_layers(graph, state, count))
    ]


def _join(graph: GraphBuilder, state: str, layers: list[str]) -> str:
    """float32[batch, hidden] of each layer → float32[layers, batch, hidden]."""
    whole = [graph.node("Unsqueeze", [layer, graph.axes(0)], f"{layer}.3d") for layer in layers]
    return whole[0] if len(whole) == 1 else graph.node("Concat", whole, f"{state}.joined", axis=0)
