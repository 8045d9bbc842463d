"""Small models, each right in some ways of running it and wrong in others, with their sidecars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from tests.support import onnx_files

SIDE = 'inputs = ["x"]\noutputs = ["y"]\n'
STATE = '[[states]]\ninput = "s"\noutput = "s_out"\n'
STEP = f'layout = "batch"\n{SIDE}{STATE}'
CHUNK = f'layout = "batch_time"\n{SIDE}{STATE}'


def step_model(body: str, *, outputs: str = "", constants: str = "") -> onnx.ModelProto:
    """x float32[batch, 3] and the state s float32[batch, 3] → y and s_out, which `body` computes."""
    return onnx_files.parsed(f"""
(float[b, 3] x, float[b, 3] s) => (float[b, 3] y, float[b, 3] s_out{outputs}) {constants} {{ {body} }}""")


def chunk_model(body: str, *, inputs: str = "", constants: str = "") -> onnx.ModelProto:
    """x float32[batch, time, 3] and the state s float32[batch, 3] → y and s_out, which `body` computes."""
    return onnx_files.parsed(f"""
(float[b, t, 3] x, float[b, 3] s{inputs}) => (float[b, t, 3] y, float[b, 3] s_out)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] last = {{-1}}, int64[1] two = {{2}}, int64[1] all = {{9999}},
 float nought = {{0}}{constants}> {{ {body} }}""")


MEAN = "m = ReduceMean<axes = [0], keepdims = 1>(x)  d = Sub(x, m)  s_out = Add(d, s)  y = Identity(s_out)"
RESHAPE = (
    "a = Add(x, s)  f = Reshape(a, flat)  g = CumSum(f, axis)  like = Shape(a)  y = Reshape(g, like)  "
    "s_out = Identity(a)"
)
# What the fourth row and those behind it hold is added to all.
FOURTH = (
    "tail = Slice(x, three, all, zero)  sum = ReduceSum<keepdims = 0>(tail, zero)  d = Add(x, sum)  s_out = Add(d, s)  "
    "y = Identity(s_out)"
)
# It counts timesteps in its state, and takes the mean of all rows from the eleventh on.
LATE_MEAN = (
    "s_out = Add(s, step)  late = Greater(s, ten)  m = ReduceMean<axes = [0], keepdims = 1>(x)  d = Sub(x, m)  "
    "y = Where(late, d, x)"
)
FIXED_ROWS = "a = Add(x, s)  y = Reshape(a, one)  s_out = Identity(a)"
FIXED_STATE = "a = Add(x, s)  y = Identity(a)  s_out = Reshape(a, one)"
EIGHT_ROWS = "a = Add(x, s)  y = Reshape(a, eight)  s_out = Identity(a)"
QUANTISED = (
    "a = Add(x, s)  q, scale, point = DynamicQuantizeLinear(a)  y = DequantizeLinear(q, scale, point)  "
    "s_out = Tanh(a)"
)
PLAIN = "s_out = Add(x, s)  y = Identity(s_out)"
CONSTANTS = (
    "<int64[2] flat = {1, -1}, int64 axis = {1}, int64[2] one = {1, 3}, int64[2] eight = {8, 3}, int64[1] zero = {0}, "
    "int64[1] three = {3}, int64[1] all = {9999}, float step = {1}, float ten = {9.5}>"
)

# The sum of all timesteps so far: `total` [batch, time, 3] and, as the state, its last one. Right in every way.
_SUM = "before = Unsqueeze(s, one)  sums = CumSum(x, one)  total = Add(sums, before)"
_LAST = "end = Slice(total, last, all, one)  s_out = Squeeze(end, one)"
SUM = f"{_SUM}  {_LAST}  y = Identity(total)"


def ahead(steps: int) -> onnx.ModelProto:
    """y_t also holds what stands `steps` timesteps later in the same chunk."""
    return chunk_model(
        f"{_SUM}  {_LAST}  longer = Pad(x, pads, nought)  later = Slice(longer, from, all, one)  y = Add(total, later)",
        constants=f", int64[6] pads = {{0, 0, 0, 0, {steps}, 0}}, int64[1] from = {{{steps}}}",
    )


def convolution() -> onnx.ModelProto:
    """A convolution of three taps that is padded on both sides, as a state none."""
    taps = ", ".join(f"{tap / 27:.3f}" for tap in range(1, 28))
    return chunk_model(
        f"{_SUM}  {_LAST}  xt = Transpose<perm = [0, 2, 1]>(x)  yt = Conv<pads = [1, 1]>(xt, taps)  "
        "y = Transpose<perm = [0, 2, 1]>(yt)",
        constants=f", float[3, 3, 3] taps = {{{taps}}}",
    )


# Its state is forgotten by every chunk of several timesteps.
ANEW = (
    "shape = Shape(x)  time = Gather(shape, one)  single = Equal(time, one)  keep = Cast<to = 1>(single)  "
    f"kept = Mul(s, keep)  before = Unsqueeze(kept, one)  sums = CumSum(x, one)  total = Add(sums, before)  {_LAST}  "
    "y = Identity(total)"
)
# Its state after a chunk is that after the chunk's first timestep.
FIRST = f"{_SUM}  end = Slice(total, zero, one, one)  s_out = Squeeze(end, one)  y = Identity(total)"
# [batch, time, 3] → [time, batch, 3] by a Reshape, which is a Transpose only if one of the two sizes is 1.
TURNED = (
    "shape = Shape(x)  rows = Slice(shape, zero, one)  time = Slice(shape, one, two)  three = Slice(shape, two, all)  "
    "turned = Concat<axis = 0>(time, rows, three)  xt = Reshape(x, turned)  xb = Transpose<perm = [1, 0, 2]>(xt)  "
    f"before = Unsqueeze(s, one)  sums = CumSum(xb, one)  total = Add(sums, before)  {_LAST}  y = Identity(total)"
)

# The timesteps before, the first being the state, in one scale for the whole chunk.
LATE_QUANTISED = (
    "before = Unsqueeze(s, one)  seen = Concat<axis = 1>(before, x)  late = Slice(seen, zero, last, one)  "
    "end = Slice(seen, last, all, one)  s_out = Squeeze(end, one)  q, scale, point = DynamicQuantizeLinear(late)  "
    "y = DequantizeLinear(q, scale, point)"
)


def recurrent(op: str, direction: str, *states: str) -> tuple[onnx.ModelProto, str]:
    """LSTM, GRU or RNN of 4 units, time first, whose `states` [directions, batch, 4] go in and out; its sidecar."""
    rng = np.random.default_rng(5)
    count, gates = 2 if direction == "bidirectional" else 1, {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node(
            op,
            ["x", "W", "R", "", "", *states],
            ["all", *(f"{n}_out" for n in states)],
            name="rnn",
            hidden_size=4,
            direction=direction,
        ),
        helper.make_node("Transpose", ["all"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "shape"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(rng.standard_normal((count, 4 * gates, size)).astype(np.float32), name)
        for name, size in (("W", 3), ("R", 4))
    ]
    weights.append(numpy_helper.from_array(np.array([0, 0, 4 * count], np.int64), "shape"))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            value("x", TensorProto.FLOAT, ["t", "b", 3]),
            *(value(n, TensorProto.FLOAT, [count, "b", 4]) for n in states),
        ],
        [
            value("y", TensorProto.FLOAT, ["t", "b", 4 * count]),
            *(value(f"{n}_out", TensorProto.FLOAT, [count, "b", 4]) for n in states),
        ],
        weights,
    )
    tables = "".join(f'[[states]]\ninput = "{n}"\noutput = "{n}_out"\nbatch_axis = 1\n' for n in states)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, f'layout = "time_batch"\n{SIDE}{tables}'


def quantised_lstm(*states: str) -> tuple[onnx.ModelProto, str]:
    """A forward LSTM as ONNX Runtime's own tool quantises it."""
    model, sidecar = recurrent("LSTM", "forward", *states)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        quantize_dynamic(model, path, weight_type=QuantType.QInt8)
        return onnx.load(path), sidecar


def stepped(body: str) -> tuple[onnx.ModelProto, str]:
    return step_model(body, constants=CONSTANTS), STEP


def chunked(body: str) -> tuple[onnx.ModelProto, str]:
    return chunk_model(body), CHUNK


def ragged() -> tuple[onnx.ModelProto, str]:
    """It takes `lengths` and advances its state past them, into what the server has padded a row with."""
    body = f"{SUM}  n = Identity(lengths)"
    side = CHUNK.replace("[[states]]", 'lengths = "lengths"\n[[states]]')
    return chunk_model(body, inputs=", int64[b] lengths"), side


@dataclass(frozen=True)
class Case:
    """A model that is right in one way only.

    Attributes:
        make: it and its sidecar.
        kinds: "rows": it is right with one session a run; "steps": with one timestep a run.
        cause: a pattern of the likely cause that is told.
        chunks: the timesteps that a run of it may take, by the default of the server's settings.
        full: whether only the full proof finds it.
    """

    make: Callable[[], tuple[onnx.ModelProto, str]]
    kinds: frozenset[str]
    cause: str = ""
    chunks: int = 1
    full: bool = False


ROWS, STEPS = frozenset({"rows"}), frozenset({"steps"})
CASES = {
    "mean": Case(lambda: stepped(MEAN), ROWS, "ReduceMean 'm' reduces over the batch"),
    "late_mean": Case(lambda: stepped(LATE_MEAN), ROWS, "ReduceMean 'm' reduces over the batch", full=True),
    "fourth": Case(lambda: stepped(FOURTH), ROWS, "ReduceSum 'sum' reduces over the batch", full=True),
    "reshape": Case(lambda: stepped(RESHAPE), ROWS, "Reshape 'f' has a fixed first size of 1"),
    "fixed_rows": Case(lambda: stepped(FIXED_ROWS), ROWS, "Reshape 'y' has a fixed first size of 1"),
    "fixed_state": Case(lambda: stepped(FIXED_STATE), ROWS, "Reshape 's_out' has a fixed first size of 1"),
    "quantised": Case(lambda: stepped(QUANTISED), ROWS, "DynamicQuantizeLinear 'q' sees all rows"),
    "quantised_lstm": Case(
        lambda: quantised_lstm("h", "c"), ROWS | STEPS, "DynamicQuantizeLSTM 'rnn_quant' sees all rows"
    ),
    "late_quantised": Case(
        lambda: chunked(LATE_QUANTISED), ROWS | STEPS, "DynamicQuantizeLinear 'q' sees all timesteps"
    ),
    "bidirectional": Case(
        lambda: recurrent("LSTM", "bidirectional", "h", "c"), STEPS, "LSTM 'rnn' is bidirectional"
    ),
    "reverse": Case(lambda: recurrent("LSTM", "reverse", "h", "c"), STEPS, "LSTM 'rnn' runs in reverse"),
    "reverse_gru": Case(lambda: recurrent("GRU", "reverse", "h"), STEPS, "GRU 'rnn' runs in reverse"),
    "convolution": Case(lambda: (convolution(), CHUNK), STEPS, "Conv 'yt' pads with zeros"),
    "ahead": Case(lambda: (ahead(1), CHUNK), STEPS),
    "far_ahead": Case(lambda: (ahead(5), CHUNK), STEPS),
    "farther_ahead": Case(lambda: (ahead(12), CHUNK), STEPS, full=True),
    "first": Case(lambda: chunked(FIRST), STEPS),
    "anew": Case(lambda: chunked(ANEW), STEPS),
    "turned": Case(lambda: chunked(TURNED), ROWS, chunks=64),
    "ragged": Case(ragged, ROWS, "its states advance past 'lengths'|several timesteps", chunks=64),
}
HEALTHY = {
    "plain": lambda: stepped(PLAIN),
    "sum": lambda: chunked(SUM),
    "lstm": lambda: recurrent("LSTM", "forward", "h", "c"),
    "gru": lambda: recurrent("GRU", "forward", "h"),
}


def save(folder: Path, name: str, model: onnx.ModelProto, sidecar: str) -> Path:
    """`name`.onnx and `name`.toml in `folder`."""
    return onnx_files.save(model, folder / f"{name}.onnx", sidecar)
