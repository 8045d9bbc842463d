"""Earlier timesteps that a session carries, as ONNX operators: pieces of a history, and the next history."""

from __future__ import annotations

import numpy as np
import onnx

from .graph import GraphBuilder

# Slice's "to the end".
END = np.iinfo(np.int64).max


def emit_last_steps(graph: GraphBuilder, whole: str, count: int, lengths: str | None, output: str) -> str:
    """The last `count` steps that count of whole float32[batch, count + time, features].

    lengths: name of int32[batch], how many steps behind the first `count` count in each row; None: all.
    """
    if lengths is None:
        return emit_slice(graph, whole, -count, END, output)
    return graph.node("GatherND", [whole, _places(graph, lengths, count)], output, batch_dims=1)


def emit_slice(graph: GraphBuilder, x: str, start: int, end: int, output: str) -> str:
    """x[:, start:end]; `END` is the end."""
    bounds = [
        graph.constant(f"{kind}_{value}".replace("-", "minus_"), np.array([value], np.int64))
        for kind, value in (("from", start), ("to", end))
    ]
    return graph.node("Slice", [x, *bounds, graph.axes(1)], output)


def _places(graph: GraphBuilder, lengths: str, count: int) -> str:
    """The positions of a row's last `count` steps if `count` steps of history precede its x.

    int64[batch, count, 1], as GatherND takes them: length, length + 1, … length + count − 1.
    """
    name = f"last_{count}"
    if not graph.has(name):
        if not graph.has("lengths.column"):
            wide = graph.node("Cast", [lengths], "lengths.int64", to=onnx.TensorProto.INT64)
            graph.node("Unsqueeze", [wide, graph.axes(1, 2)], "lengths.column")
        ahead = graph.constant(f"{name}.ahead", np.arange(count, dtype=np.int64)[None, :, None])
        graph.node("Add", ["lengths.column", ahead], name)
    return name
