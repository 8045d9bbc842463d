"""Small graphs with states, composed of blocks at random: healthy ones, and ones that mix rows or look ahead.

Between two blocks a value is float32[batch, time, 4], or [batch, 4] if the layout has no time axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 4
LAYOUTS = ("batch", "batch_time", "time_batch")
OPSETS = (11, 12, 13, 15, 17, 18, 21)
TOKENS = 7
# An end of a slice that is behind every axis' own.
ALL = 2**31


@dataclass(frozen=True)
class RandomState:
    """A state as the sidecar has it; `shape` is one session's."""

    name: str
    shape: tuple[int, ...]
    axis: int
    dtype: str
    initial: float

    @property
    def dims(self) -> list[int | str]:
        """With the batch axis in its place."""
        return [*self.shape[: self.axis], "b", *self.shape[self.axis :]]


@dataclass(frozen=True)
class RandomModel:
    """A graph, how its sidecar describes it, and the names of the blocks that it is made of."""

    graph: onnx.ModelProto
    sidecar: str | None
    layout: str
    lengths: bool
    tokens: bool
    states: tuple[RandomState, ...]
    output: str
    blocks: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether it is right however it is run. Of the blocks with states only the operators heed `lengths`."""
        return set(self.blocks) <= ({"dense", "norm", "recurrent"} if self.lengths else set(HEALTHY))


Keep = Callable[[str], None]


@dataclass
class Builder:
    """Takes nodes, constants and states."""

    rng: np.random.Generator
    layout: str
    opset: int
    lengths: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    states: list[RandomState] = field(default_factory=list)
    count: int = 0

    @property
    def has_time(self) -> bool:
        return self.layout != "batch"

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def add(self, op: str, *inputs: str, into: str = "", **attributes: Any) -> str:
        return self.add_all(op, *inputs, outputs=[into or self.name(op.lower())], **attributes)[0]

    def add_all(self, op: str, *inputs: str, outputs: int | list[str], **attributes: Any) -> list[str]:
        names = outputs if isinstance(outputs, list) else [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=self.name("node"), **attributes))
        return names

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = self.name("constant")
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, 0.5, shape), np.float32)

    def raw_state(
        self, *shape: int, axis: int, dtype: str = "float32", initial: float = 0.0
    ) -> tuple[str, Keep]:
        """A state as the graph takes it, and what gives it its next value."""
        name = self.name("s")
        self.states.append(RandomState(name, shape, axis, dtype, initial))
        return name, lambda value: (self.add("Identity", value, into=f"{name}_next"), None)[1]

    def state(self, *shape: int, dtype: str = "float32", initial: float = 0.0) -> tuple[str, Keep]:
        """The same batch first, wherever the graph has the batch axis."""
        axis, rank = int(self.rng.integers(0, len(shape) + 1)), len(shape)
        name, keep = self.raw_state(*shape, axis=axis, dtype=dtype, initial=initial)
        if axis == 0:
            return name, keep
        later = range(axis + 1, rank + 1)
        first = self.add("Transpose", name, perm=[axis, *range(axis), *later])
        outward = [*range(1, axis + 1), 0, *later]
        return first, lambda value: keep(self.add("Transpose", value, perm=outward))

    def along(self, since: int, op: str, value: str, *axes: int, **attributes: Any) -> str:
        """An operator whose axes are an input since opset `since`, and an attribute before."""
        if self.opset >= since:
            return self.add(op, value, self.constant(axes), **attributes)
        return self.add(op, value, axes=list(axes), **attributes)

    def squeeze(self, value: str, *axes: int) -> str:
        return self.along(13, "Squeeze", value, *axes)

    def unsqueeze(self, value: str, *axes: int) -> str:
        return self.along(13, "Unsqueeze", value, *axes)

    def reduce(self, op: str, value: str, axis: int, *, keepdims: int = 1) -> str:
        return self.along(13 if op == "ReduceSum" else 18, op, value, axis, keepdims=keepdims)

    def cast(self, value: str, dtype: str) -> str:
        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def last(self, value: str) -> str:
        """[batch, …] of [batch, time, …]."""
        return self.squeeze(self.cut(value, -1, ALL, 1), 1)

    def cut(self, value: str, begin: int, end: int, axis: int) -> str:
        return self.add("Slice", value, *(self.constant([place]) for place in (begin, end, axis)))

    def timed(self, value: str) -> str:
        """[batch, time, …], whatever the layout is."""
        return value if self.has_time else self.unsqueeze(value, 1)

    def untimed(self, value: str) -> str:
        return value if self.has_time else self.squeeze(value, 1)

    def time_first(self, value: str) -> str:
        return self.add("Transpose", self.timed(value), perm=[1, 0, 2])

    def steps(self, value: str) -> str:
        """int64[1], the timesteps of a value [batch, time, …]."""
        return self.cut(self.add("Shape", value), 1, 2, 0)

    def like_ones(self, value: str) -> str:
        """float32[batch, time, 1] of ones."""
        shape = self.add("Concat", self.cut(self.add("Shape", value), 0, 2, 0), self.constant([1]), axis=0)
        one = numpy_helper.from_array(np.ones(1, np.float32))
        return self.add("ConstantOfShape", shape, value=one)


# Right however they are run.


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


Block = Callable[[Builder, str], str]
STATEFUL: dict[str, Block] = {
    block.__name__: block
    for block in (recurrent, causal, delay, total, latched, unread, counted, scanned, chosen, looped, swapped)
}
HEALTHY = {"dense": dense, "norm": norm, **STATEFUL}
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


def compose(seed: int) -> RandomModel:
    """The model of a seed: two to five blocks, one with a state at least. Every second model has a wrong one.

    As many seeds in a row as there are wrong blocks, twice, give each of them.
    """
    rng = np.random.default_rng(seed)
    wrong = list(WRONG)[seed // 2 % len(WRONG)] if seed % 2 else ""
    layout = LAYOUTS[1 + seed // 2 % 2] if wrong in ONLY_IN_TIME else LAYOUTS[seed % 3]
    opset = int(rng.choice(OPSETS))
    b = Builder(rng, layout, opset, lengths=layout != "batch" and rng.random() < 0.3)
    heeding = b.lengths and rng.random() < 0.6
    blocks, stateful = (
        (["dense", "norm", "recurrent"], ["recurrent"]) if heeding else (list(HEALTHY), list(STATEFUL))
    )
    names = [str(name) for name in rng.choice(blocks, int(rng.integers(1, 4)))]
    names.append(stateful[seed % len(stateful)])
    if wrong:
        names.append(wrong)
    rng.shuffle(names)
    tokens = rng.random() < 0.2
    value = b.add("Gather", b.weights(TOKENS, WIDTH), "x") if tokens else "x"
    value = b.add("Transpose", value, perm=[1, 0, 2]) if layout == "time_batch" else value
    for name in names:
        made = {**HEALTHY, **WRONG}[name](b, value)
        value = b.add("Add", value, made) if rng.random() < 0.3 else made
    output = "y"
    if layout == "time_batch":
        b.add("Transpose", value, perm=[1, 0, 2], into="y")
    else:
        b.add("Identity", value, into="y")
    flat = [s for s in b.states if (s.shape, s.axis, s.dtype) == ((WIDTH,), 0, "float32")]
    if layout == "batch" and flat and rng.random() < 0.2:
        output = f"{flat[0].name}_next"
    # The size of the batch in the file: open, or that of its example.
    fixed = rng.random() < 0.15
    graph = _graph(b, 1 if fixed else "b", tokens)
    # Names and sizes say enough of some graphs.
    plain = not (fixed or b.lengths or tokens or output != "y" or any(state.initial for state in b.states))
    sidecar = None if plain and rng.random() < 0.5 else _sidecar(b, output, fixed)
    return RandomModel(graph, sidecar, layout, b.lengths, tokens, tuple(b.states), output, tuple(names))


def _graph(b: Builder, batch: int | str, tokens: bool) -> onnx.ModelProto:
    lead: list[int | str] = {"batch": [batch], "batch_time": [batch, "t"], "time_batch": ["t", batch]}[
        b.layout
    ]

    def value(name: str, dtype: str, dims: list[int | str]) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, [batch if d == "b" else d for d in dims])

    inputs = [value("x", "int64", lead) if tokens else value("x", "float32", [*lead, WIDTH])]
    if b.lengths:
        inputs.append(value("lengths", "int64", [batch]))
    inputs += [value(s.name, s.dtype, s.dims) for s in b.states]
    outputs = [value("y", "float32", [*lead, WIDTH])]
    outputs += [value(f"{s.name}_next", s.dtype, s.dims) for s in b.states]
    graph = helper.make_graph(b.nodes, "random", inputs, outputs, b.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=9)


def _sidecar(b: Builder, output: str, fixed: bool) -> str:
    lines = [f'layout = "{b.layout}"', 'inputs = ["x"]', f'outputs = ["{output}"]']
    if b.lengths:
        lines.append('lengths = "lengths"')
    if fixed:
        lines.append(str(b.rng.choice(["max_batch = 1", 'max_batch = "any"'])))
    for s in b.states:
        lines += ["[[states]]", f'input = "{s.name}"', f'output = "{s.name}_next"', f"batch_axis = {s.axis}"]
        if s.initial:
            lines.append(f"initial = {s.initial}")
    return "\n".join(lines) + "\n"
