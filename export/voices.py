"""Softmaxes of voices → logits of keys as ONNX operators; `models/layers/voices.py` has the formula."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from streamcell.models.layers.voices import LEAST_ODDS, Voices

from .graph import GraphBuilder
from .tensors import as_float64


def emit_voices(graph: GraphBuilder, voices: Voices, a: str) -> str:
    """a float32[i, j, voices·(keys + 1)] → float32[i, j, keys].

    The sums over the other keys are a product with a constant that is stored as float64 and cast when the file is
    loaded: stored as a weight it would be rounded with the weights, and multiplied in int8.
    """
    shape = graph.constant("voices.shape", np.array([0, 0, voices.voices, voices.keys + 1], np.int64))
    z = graph.node("Softmax", [graph.node("Reshape", [a, shape], "voices.apart")], "voices.shares", axis=-1)
    others = graph.constant("voices.others.float64", as_float64(voices.others))
    others = graph.node("Cast", [others], "voices.others", to=TensorProto.FLOAT)
    doubt = graph.node("MatMul", [z, others], "voices.doubt")
    bounds = [graph.axes(0), graph.constant("voices.keys", np.array([voices.keys], np.int64)), graph.axes(3)]
    odds = graph.node("Div", [graph.node("Slice", [z, *bounds], "voices.keyed"), doubt], "voices.odds")
    odds = graph.node("ReduceSum", [odds, graph.axes(2)], "voices.sum", keepdims=0)
    floor = graph.constant("voices.floor", np.array(LEAST_ODDS, np.float32))
    return graph.node("Log", [graph.node("Add", [odds, floor], "voices.floored")], "voices.log")
