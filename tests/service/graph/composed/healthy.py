"""Blocks that are right however they are run."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .builder import ALL, WIDTH, Block, Builder


def dense(b: Builder, x: str) -> str:
    return b.add("Tanh", b.add("Add", b.add("MatMul", x, b.weights(WIDTH, WIDTH)), b.weights(WIDTH)))


def norm(b: Builder, x: str) -> str:
    centred = b.add("Sub", x, b.reduce("ReduceMean", x, -1))
    spread = b.reduce("ReduceMean", b.add("Mul", centred, centred), -1)
    return b.add("Div", centred, b.add("Sqrt", b.add("Add", spread, b.constant(1, np.float32))))


def recurrent(b: Builder, x: str, direction: str = "forward", op: str = "", drop: str = "") -> str:
    op = op or str(b.rng.choice(["LSTM", "GRU", "RNN"]))
    gates, count = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1
    states, keeps = [], []
    for name in ["h", "c"] if op == "LSTM" else ["h"]:
        state, keep = ("", lambda value: None) if name == drop else b.raw_state(count, WIDTH, axis=1)
        states.append(state)
        keeps.append(keep)
    w, r = b.weights(count, gates * WIDTH, WIDTH), b.weights(count, gates * WIDTH, WIDTH)
    lengths = b.add("Cast", "lengths", to=TensorProto.INT32) if b.lengths else ""
    more = {"linear_before_reset": int(b.rng.integers(0, 2))} if op == "GRU" else {}
    y, *after = b.add_all(
        op, b.time_first(x), w, r, "", lengths, *states,
        outputs=1 + len(states), hidden_size=WIDTH, direction=direction, **more,
    )  # fmt: skip
    for keep, value in zip(keeps, after, strict=True):
        keep(value)
    return b.untimed(b.reduce("ReduceSum", b.add("Transpose", y, perm=[2, 0, 1, 3]), 2, keepdims=0))


def history(b: Builder, x: str, steps: int, dtype: str = "float32") -> str:
    """x [batch, time, 4] with what the last `steps` timesteps were before it."""
    past, keep = b.state(steps, WIDTH, dtype=dtype, initial=float(b.rng.integers(-1, 2)))
    seen = b.add("Concat", b.cast(past, "float32"), b.cast(b.cast(x, dtype), "float32"), axis=1)
    keep(b.cast(b.cut(seen, -steps, ALL, 1), dtype))
    return seen


def causal(b: Builder, x: str) -> str:
    taps = int(b.rng.integers(2, 5))
    seen = b.add("Transpose", history(b, b.timed(x), taps - 1), perm=[0, 2, 1])
    y = b.add("Conv", seen, b.weights(WIDTH, WIDTH, taps))
    return b.untimed(b.add("Transpose", y, perm=[0, 2, 1]))


def delay(b: Builder, x: str) -> str:
    steps = int(b.rng.integers(1, 4))
    seen = history(b, b.timed(x), steps, str(b.rng.choice(["float32", "float16"])))
    return b.untimed(b.cut(seen, 0, -steps, 1))


def total(b: Builder, x: str) -> str:
    dtype = str(b.rng.choice(["float32", "float64"]))
    before, keep = b.state(WIDTH, dtype=dtype, initial=float(b.rng.integers(0, 3)))
    sums = b.add("CumSum", b.cast(b.timed(x), dtype), b.constant(1))
    sums = b.add("Add", sums, b.unsqueeze(before, 1))
    keep(b.last(sums))
    return b.untimed(b.cast(sums, "float32"))


def latched(b: Builder, x: str) -> str:
    """What has been above 0.37 once is let through from then on; the state is boolean."""
    before, keep = b.state(WIDTH, dtype="bool")
    xt = b.timed(x)
    above = b.cast(b.add("Greater", xt, b.constant(0.37, np.float32)), "float32")
    times = b.add("Add", b.add("CumSum", above, b.constant(1)), b.unsqueeze(b.cast(before, "float32"), 1))
    open_ = b.add("Greater", times, b.constant(0.5, np.float32))
    keep(b.last(open_))
    return b.untimed(b.add("Mul", xt, b.cast(open_, "float32")))


def unread(b: Builder, x: str) -> str:
    """A state that is written and never read."""
    _, keep = b.state(WIDTH)
    keep(b.last(b.timed(x)))
    return x


def counted(b: Builder, x: str) -> str:
    """Divided by the number of the timestep, which is an integer state without axes of its own."""
    before, keep = b.state(dtype="int64")
    xt = b.timed(x)
    numbers = b.add("CumSum", b.like_ones(xt), b.constant(1))
    numbers = b.add("Add", numbers, b.cast(b.unsqueeze(before, 1, 2), "float32"))
    keep(b.cast(b.squeeze(b.last(numbers), 1), "int64"))
    return b.untimed(b.add("Div", xt, numbers))


def scanned(b: Builder, x: str) -> str:
    """An exponential mean in the body of a Scan over time."""
    before, keep = b.state(WIDTH)
    body = helper.make_graph(
        [
            helper.make_node("Sub", ["now", "mean"], ["gap"]),
            helper.make_node("Mul", ["gap", "rate"], ["part"]),
            helper.make_node("Add", ["mean", "part"], ["mean_next"]),
            helper.make_node("Identity", ["mean_next"], ["out"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, WIDTH]) for n in ("mean", "now")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, WIDTH]) for n in ("mean_next", "out")],
        [numpy_helper.from_array(np.float32(0.3), "rate")],
    )
    after, y = b.add_all("Scan", before, b.time_first(x), outputs=2, body=body, num_scan_inputs=1)
    keep(after)
    return b.untimed(b.add("Transpose", y, perm=[1, 0, 2]))


def branch(b: Builder, value: str, *, factor: float) -> onnx.GraphProto:
    """The body of an If: a value of the graph around it, times `factor`."""
    name, out = b.name("factor"), b.name("branch")
    return helper.make_graph(
        [helper.make_node("Mul", [value, name], [out])],
        out,
        [],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(factor), name)],
    )


def chosen(b: Builder, x: str, factors: tuple[float, float] = (1.0, 1.0)) -> str:
    """A sum whose state one of the two bodies of an If reads, depending on the number of timesteps."""
    before, keep = b.state(WIDTH)
    xt = b.timed(x)
    single = b.add("Equal", b.squeeze(b.steps(xt), 0), b.constant(1))
    then, other = (branch(b, before, factor=factor) for factor in factors)
    kept = b.add("If", single, then_branch=then, else_branch=other)
    sums = b.add("Add", b.add("CumSum", xt, b.constant(1)), b.unsqueeze(kept, 1))
    keep(b.last(sums))
    return b.untimed(sums)


def looped(b: Builder, x: str) -> str:
    """The largest so far, by a Loop over time whose body reads the graph around it."""
    before, keep = b.state(WIDTH, initial=-1.0)
    xt, place = b.timed(x), b.name("place")
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Gather", [xt, place], ["now"], axis=1),
            helper.make_node("Max", ["most", "now"], ["most_next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["most_next"], ["out"]),
        ],
        "body",
        [
            value(place, TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("most", TensorProto.FLOAT, [None, WIDTH]),
        ],
        [
            value("go_on", TensorProto.BOOL, []),
            value("most_next", TensorProto.FLOAT, [None, WIDTH]),
            value("out", TensorProto.FLOAT, [None, WIDTH]),
        ],
    )
    after, y = b.add_all("Loop", b.squeeze(b.steps(xt), 0), "", before, outputs=2, body=body)
    keep(after)
    return b.untimed(b.add("Transpose", y, perm=[1, 0, 2]))


def swapped(b: Builder, x: str) -> str:
    """Two states that change places with every timestep: in a graph of one timestep."""
    if b.has_time:
        return total(b, x)
    (first, keep_first), (second, keep_second) = b.state(WIDTH, initial=1.0), b.state(WIDTH)
    keep_first(second)
    keep_second(b.add("Add", first, b.add("Tanh", x)))
    return b.add("Sub", x, first)


STATEFUL: dict[str, Block] = {
    block.__name__: block
    for block in (recurrent, causal, delay, total, latched, unread, counted, scanned, chosen, looped, swapped)
}
HEALTHY = {"dense": dense, "norm": norm, **STATEFUL}
