"""Blocks whose answers depend on their neighbours, on how a chunk is cut, or on nothing that a run keeps."""

from __future__ import annotations

import numpy as np

from .builder import WIDTH, Block, Builder
from .healthy import branch, chosen, recurrent

# A row's answer depends on its neighbours.


def less_mean_of_rows(b: Builder, x: str) -> str:
    return b.add("Sub", x, b.reduce("ReduceMean", x, 0))


def less_first_row(b: Builder, x: str) -> str:
    return b.add("Sub", x, b.cut(x, 0, 1, 0))


def summed_rows(b: Builder, x: str) -> str:
    return b.add("CumSum", x, b.constant(0))


def quantised(b: Builder, x: str) -> str:
    return b.add("DequantizeLinear", *b.add_all("DynamicQuantizeLinear", x, outputs=3))


def less_mean_of_states(b: Builder, x: str) -> str:
    before, keep = b.state(WIDTH)
    xt = b.timed(x)
    centred = b.add("Sub", before, b.reduce("ReduceMean", before, 0))
    keep(b.last(xt))
    return b.untimed(b.add("Add", xt, b.unsqueeze(centred, 1)))


def one_row(b: Builder, x: str) -> str:
    """A batch of 1 written into a shape."""
    return b.add("Tanh", b.add("Reshape", x, b.constant([1, -1, WIDTH] if b.has_time else [1, WIDTH])))


def branch_of_all_rows(b: Builder, x: str) -> str:
    """An If whose condition any loud row of the batch fulfils."""
    flat = b.add("Reshape", b.add("Abs", x), b.constant([-1]))
    loudest = b.add("ReduceMax", flat, keepdims=0)
    loud = b.add("Greater", loudest, b.constant(0.8, np.float32))
    return b.add("If", loud, then_branch=branch(b, x, factor=0.5), else_branch=branch(b, x, factor=2.0))


def rows_in_steps(b: Builder, x: str) -> str:
    """[batch, time, 4] read as [time, batch, 4]."""
    xt = b.timed(x)
    shape = b.add("Shape", xt)
    turned = b.add("Concat", *(b.cut(shape, place, place + 1, 0) for place in (1, 0, 2)), axis=0)
    return b.untimed(b.add("Transpose", b.add("Reshape", xt, turned), perm=[1, 0, 2]))


def flat_rows(b: Builder, x: str) -> str:
    flat = b.add("Reshape", x, b.constant([1, -1]))
    return b.add("Reshape", b.add("Softmax", flat, axis=1), b.add("Shape", x))


# A timestep's answer depends on how its chunk is cut.


def less_mean_of_steps(b: Builder, x: str) -> str:
    xt = b.timed(x)
    return b.untimed(b.add("Sub", xt, b.reduce("ReduceMean", xt, 1)))


def padded(b: Builder, x: str) -> str:
    xt = b.add("Transpose", b.timed(x), perm=[0, 2, 1])
    y = b.add("Conv", xt, b.weights(WIDTH, WIDTH, 3), pads=[1, 1])
    return b.untimed(b.add("Transpose", y, perm=[0, 2, 1]))


def backwards(b: Builder, x: str) -> str:
    return b.untimed(b.add("CumSum", b.timed(x), b.constant(1), reverse=1))


def place_in_chunk(b: Builder, x: str) -> str:
    xt = b.timed(x)
    return b.untimed(b.add("Div", xt, b.add("CumSum", b.like_ones(xt), b.constant(1))))


def reverse(b: Builder, x: str) -> str:
    return recurrent(b, x, str(b.rng.choice(["reverse", "bidirectional"])))


def forgets_in_chunks(b: Builder, x: str) -> str:
    return chosen(b, x, (1.0, 0.5))


# It keeps nothing over runs.


def no_cell(b: Builder, x: str) -> str:
    return recurrent(b, x, op="LSTM", drop=str(b.rng.choice(["h", "c"])))


WRONG: dict[str, Block] = {
    block.__name__: block
    for block in (
        less_mean_of_rows,
        less_first_row,
        less_mean_of_states,
        summed_rows,
        quantised,
        rows_in_steps,
        flat_rows,
        one_row,
        branch_of_all_rows,
        less_mean_of_steps,
        padded,
        backwards,
        place_in_chunk,
        reverse,
        forgets_in_chunks,
        no_cell,
    )
}
# What does no harm in a graph of one timestep.
ONLY_IN_TIME = {
    "less_mean_of_steps",
    "padded",
    "backwards",
    "place_in_chunk",
    "reverse",
    "forgets_in_chunks",
    "rows_in_steps",
}
