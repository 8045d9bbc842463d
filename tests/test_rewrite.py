"""The pool built into graphs that no exporter of ours wrote: same results as states passed by hand, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from streamcell.card import Signature, State, Tensor
from streamcell.service.load_errors import RewriteError, SignatureError
from streamcell.service.rewrite import READ_SLOTS, WRITE_SLOTS, Pooled, initial_value, pool_states

Arrays = dict[str, np.ndarray[Any, Any]]
SCATTERS = ("nd", "elements")
LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def parse(text: str, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g {text}')


def tensor(name: str, *shape: int, dtype: str = "float32") -> Tensor:
    return Tensor(name=name, dtype=dtype, step_shape=shape)  # type: ignore[arg-type]


def state(
    input_: str, output: str, *shape: int, axis: int = 0, dtype: str = "float32", initial: Any = 0.0
) -> State:
    return State(input=input_, output=output, dtype=dtype, shape=shape, batch_axis=axis, initial=initial)  # type: ignore[arg-type]


def signature(inputs: list[Tensor], outputs: list[Tensor], states: list[State], **more: Any) -> Signature:
    return Signature(inputs=inputs, outputs=outputs, states=states, **{"layout": "batch", **more})  # type: ignore[arg-type]


def session(model: onnx.ModelProto, level: str = "all", save: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if save is not None:
        options.optimized_model_filepath = str(save)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class ByHand:
    """The model as its author meant it: states go in and come out of every run, one session at a time."""

    def __init__(self, model: onnx.ModelProto, described: Signature, constants: Mapping[str, Any]) -> None:
        self.session = session(model)
        self.signature = described
        self.constants = dict(constants)

    def initial(self) -> Arrays:
        return {s.input: np.expand_dims(initial_value(s), s.batch_axis).copy() for s in self.signature.states}

    def step(self, feeds: Arrays, states: Arrays) -> tuple[Arrays, Arrays]:
        """`feeds`: batch-first tensors of one session; gives outputs the same way, and the new states."""
        turned = self.signature.layout == "time_batch"
        swapped = {n: np.swapaxes(v, 0, 1) if turned and v.ndim > 1 else v for n, v in feeds.items()}
        wanted = [t.name for t in self.signature.outputs] + [s.output for s in self.signature.states]
        given = self.session.run(wanted, {**swapped, **states, **self.constants})
        count = len(self.signature.outputs)
        outputs = [np.swapaxes(v, 0, 1) if turned else v for v in given[:count]]
        return (
            dict(zip(wanted[:count], outputs, strict=True)),
            {s.input: v for s, v in zip(self.signature.states, given[count:], strict=True)},
        )


class InPool:
    """The rewritten model with every pool's input and output bound to one memory."""

    def __init__(
        self, pooled: Pooled, described: Signature, rows: int, level: str = "all", save: Path | None = None
    ):
        onnx.checker.check_model(pooled.model, full_check=True)
        self.session = session(pooled.model, level, save)
        self.signature = described
        self.pools = pooled.pools
        self.memory = [np.zeros((rows, *p.shape), p.dtype) for p in pooled.pools]
        for memory, pool in zip(self.memory, self.pools, strict=True):
            memory[0] = pool.initial
        self.values = [ort.OrtValue.ortvalue_from_numpy(m) for m in self.memory]

    def step(self, feeds: Arrays, read: list[int], write: list[int]) -> Arrays:
        """`feeds`: batch-first tensors of all sessions in the run."""
        binding = self.session.io_binding()
        slots: Arrays = {}
        if self.pools:
            slots = {READ_SLOTS: np.array(read, np.int64), WRITE_SLOTS: np.array(write, np.int64)[:, None]}
        for name, value in {**feeds, **slots}.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for t in self.signature.outputs:
            binding.bind_output(t.name)
        for pool, value in zip(self.pools, self.values, strict=True):
            binding.bind_ortvalue_input(pool.input, value)
            binding.bind_ortvalue_output(pool.output, value)
        self.session.run_with_iobinding(binding)
        names = [t.name for t in self.signature.outputs]
        return {n: v.numpy() for n, v in zip(names, binding.get_outputs()[: len(names)], strict=True)}


def random_feed(t: Tensor, lead: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if t.dtype == "bool":
        return rng.random((*lead, *t.step_shape)) > 0.5
    if t.dtype.startswith("float"):
        return rng.normal(size=(*lead, *t.step_shape)).astype(t.dtype)
    return rng.integers(0, 5, (*lead, *t.step_shape)).astype(t.dtype)


def check_gathers_come_first(path: Path, pooled: Pooled) -> None:
    """In the graph as optimised, every write to a pool needs the rows that were read from it."""
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    for pool in pooled.pools:
        readers = {n.output[0] for n in graph.node if n.op_type == "Gather" and n.input[0] == pool.input}
        users = [n for n in graph.node if pool.input in n.input]
        assert len(users) == len(readers) + 1
        reached: set[str] = set()
        pending = [pool.output]
        while pending:
            name = pending.pop()
            if name not in reached and name in makers:
                reached.add(name)
                pending += makers[name].input
        assert readers <= reached, f"{pool.input} may be written before it is read"


def check(
    model: onnx.ModelProto,
    described: Signature,
    folder: Path,
    constants: Mapping[str, Any] | None = None,
    *,
    scatter: str = "nd",
    level: str = "all",
    batch: int | None = None,
    tolerance: float = 1e-6,
) -> InPool:
    """Sessions in random company give what each gives alone; rows that no run writes keep every bit."""
    rng = np.random.default_rng(0)
    rows, guard = 8, 7
    before = model.SerializeToString()
    pooled = pool_states(model, described, constants, scatter=scatter)  # type: ignore[arg-type]
    assert model.SerializeToString() == before
    in_pool = InPool(pooled, described, rows, level, folder / "optimised.onnx")
    check_gathers_come_first(folder / "optimised.onnx", pooled)
    by_hand = ByHand(model, described, constants or {})
    for memory in in_pool.memory:
        memory[guard] = random_feed(Tensor(name="guard", dtype=memory.dtype.name), memory.shape[1:], rng)
    states = {row: by_hand.initial() for row in range(1, guard)}
    fresh = set(states)
    for _ in range(8):
        live = rng.permutation(list(states))[: batch or rng.integers(1, guard)].tolist()
        steps = int(rng.integers(1, 4)) if described.has_time else 0
        lead = (len(live), steps) if described.has_time else (len(live),)
        feeds = {t.name: random_feed(t, lead, rng) for t in described.inputs}
        if described.lengths:
            feeds[described.lengths] = rng.integers(1, steps + 1, len(live)).astype(np.int32)
        kept = [memory.copy() for memory in in_pool.memory]
        got = in_pool.step(feeds, [0 if row in fresh else row for row in live], live)
        for index, row in enumerate(live):
            fresh.discard(row)
            alone = {name: value[index : index + 1] for name, value in feeds.items()}
            wanted, states[row] = by_hand.step(alone, states[row])
            for name, value in wanted.items():
                assert got[name][index : index + 1].shape == value.shape
                np.testing.assert_allclose(
                    got[name][index : index + 1], value, rtol=tolerance, atol=tolerance
                )
            for memory, s in zip(in_pool.memory, described.states, strict=True):
                new = np.squeeze(states[row][s.input], s.batch_axis)
                np.testing.assert_allclose(memory[row], new, rtol=tolerance, atol=tolerance)
        for memory, old in zip(in_pool.memory, kept, strict=True):
            others = [row for row in range(rows) if row not in live]
            assert memory[others].tobytes() == old[others].tobytes()
    return in_pool


X, Y, H = tensor("x", 4), tensor("y", 4), state("h", "h_next", 4)
BORDER = "(float[b,4] x, float[b,4] h) => (float[b,4] y, float[b,4] h_next)"
TWO = "(float[b,4] x, float[b,4] h, float[b,4] c) => (float[b,4] y, float[b,4] h_next, float[b,4] c_next)"

# What the order of a pool's read and write hangs on, case by case.
ORDER: dict[str, tuple[str, Signature]] = {
    "delay line": (BORDER + "{ y = Neg(h) h_next = Identity(x) }", signature([X], [Y], [H])),
    "delay line, late read": (
        BORDER + "{ h_next = Mul(x, x) a = Exp(x) b1 = Sin(a) y = Add(b1, h) }",
        signature([X], [Y], [H]),
    ),
    "unchanged": (BORDER + "{ y = Add(x, h) h_next = Identity(h) }", signature([X], [Y], [H])),
    "output is input": (
        "(float[b,4] x, float[b,4] h) => (float[b,4] y, float[b,4] h) { y = Add(x, h) }",
        signature([X], [Y], [state("h", "h", 4, initial=3.0)]),
    ),
    "swap": (
        TWO + "{ h_next = Identity(c) k = Add(h, x) c_next = Identity(k) y = Sub(h, c) }",
        signature([X], [Y], [H, state("c", "c_next", 4, initial=(1.0, 2.0, 3.0, 4.0))]),
    ),
    "plain swap": (
        TWO + "{ h_next = Identity(c) c_next = Identity(h) y = Add(x, h) }",
        signature([X], [Y], [H, state("c", "c_next", 4, initial=2.0)]),
    ),
    "swap of sums": (
        TWO + "{ h_next = Add(c, x) c_next = Sub(h, x) y = Neg(h) }",
        signature([X], [Y], [H, state("c", "c_next", 4, initial=2.0)]),
    ),
    "state is an output": (
        "(float[b,4] x, float[b,4] h) => (float[b,4] h, float[b,4] h_next) { h_next = Identity(x) }",
        signature([X], [tensor("h", 4)], [H]),
    ),
    "new state is the output": (
        "(float[b,4] x, float[b,4] h) => (float[b,4] h_next, float[b,4] z) "
        "{ s = Add(x, h) h_next = Tanh(s) z = Exp(h_next) }",
        signature([X], [tensor("h_next", 4), tensor("z", 4)], [H]),
    ),
    "only the shape of the state": (
        BORDER + "{ s = Shape(h) h_next = Expand(x, s) y = Neg(h) }",
        signature([X], [Y], [H]),
    ),
    "constant reset": (
        BORDER + "<float[1,4] zero = {0,0,0,0}> { h_next = Mul(x, zero) y = Add(h, x) }",
        signature([X], [Y], [H]),
    ),
    "selected away": (
        BORDER
        + "{ both = Concat<axis = 1>(h, x) old, h_next = Split<axis = 1, num_outputs = 2>(both) y = Neg(h) }",
        signature([X], [Y], [H]),
    ),
    "state inside If": (
        BORDER
        + """{
            s = ReduceSum<keepdims = 0>(x) zero = Constant<value = float {0.0}>() positive = Greater(s, zero)
            h_next = If(positive) <
                then_branch = a () => (float[n,4] p) { p = Add(h, x) },
                else_branch = b () => (float[n,4] q) { q = Sub(h, x) }>
            y = Neg(h_next)
        }""",
        signature([X], [Y], [H], max_batch=1),
    ),
    "state inside Loop": (
        BORDER
        + """{
            three = Constant<value = int64 {3}>() go = Constant<value = bool {1}>()
            h_next = Loop(three, go, x) <body = body (int64 i, bool c, float[n,4] v) => (bool d, float[n,4] w)
                { d = Identity(c) w = Add(v, h) }>
            y = Sub(h_next, x)
        }""",
        signature([X], [Y], [H]),
    ),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scatter", SCATTERS)
@pytest.mark.parametrize("case", ORDER)
def test_every_read_comes_before_the_write_of_the_same_pool(
    case: str, scatter: str, level: str, tmp_path: Path
) -> None:
    text, described = ORDER[case]
    model = parse(text, opset=18 if "num_outputs" in text else 17)
    check(model, described, tmp_path, scatter=scatter, level=level, batch=described.max_batch)


LSTM = """(float[t,b,3] x, int32[b] n, float[1,b,4] h, float[1,b,4] c)
    => (float[t,d,b,4] raw, float[t,b,4] y, float[1,b,4] h_next, float[1,b,4] c_next)
    { raw, h_next, c_next = LSTM<hidden_size = 4>(x, w, r, bias, n, h, c) one = Constant<value_ints = [1]>()
      y = Squeeze(raw, one) }"""


def lstm(**more: Any) -> tuple[onnx.ModelProto, Signature]:
    """An LSTM operator as it is by nature: time first, states [layers, batch, hidden]."""
    rng = np.random.default_rng(1)
    model = parse(LSTM)
    del model.graph.output[0]
    for name, shape in (("w", (1, 16, 3)), ("r", (1, 16, 4)), ("bias", (1, 32))):
        value = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    states = [state("h", "h_next", 1, 4, axis=1, initial=0.5), state("c", "c_next", 1, 4, axis=1)]
    return model, signature([tensor("x", 3)], [Y], states, layout="time_batch", lengths="n", **more)


@pytest.mark.parametrize("scatter", SCATTERS)
def test_time_first_recurrent_operator_with_ragged_lengths_is_served_batch_first(
    scatter: str, tmp_path: Path
) -> None:
    model, described = lstm()
    in_pool = check(model, described, tmp_path, scatter=scatter, tolerance=1e-5)
    assert [i.shape for i in in_pool.session.get_inputs()[:1]] == [["batch", "time", 3]]
    optimised = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    # The dependency runs through the operator: nothing had to be added.
    assert "Cast" not in optimised
    assert "Add" not in optimised or scatter == "elements"


def test_lengths_of_another_integer_type_are_taken_as_int32(tmp_path: Path) -> None:
    model = parse(
        "(float[b,t,4] x, int64[b] n, float[b,4] h) => (float[b,t,4] y, float[b,4] h_next) {"
        " f = Cast<to = 1>(n) axes = Constant<value_ints = [1]>() col = Unsqueeze(f, axes) h_next = Add(h, col)"
        " mid = Unsqueeze(h, axes) y = Add(x, mid) }"
    )
    described = signature([X], [Y], [H], layout="batch_time", lengths="n")
    in_pool = InPool(pool_states(model, described), described, 4)
    feeds = {"x": np.zeros((2, 3, 4), np.float32), "n": np.array([3, 1], np.int32)}
    in_pool.step(feeds, [0, 0], [1, 2])
    np.testing.assert_array_equal(in_pool.memory[0][1:3, 0], [3, 1])


def test_time_first_outputs_that_are_inputs_or_feed_others_keep_their_values(tmp_path: Path) -> None:
    model = parse(
        "(float[t,b,4] x, float[b,4] h) => (float[t,b,4] x, float[t,b,4] y, float[t,b,4] z, float[b,4] h_next)"
        "{ y = Add(x, h) z = Neg(y) axes = Constant<value_ints = [0]>() h_next = ReduceSum<keepdims = 0>(z, axes) }"
    )
    outputs = [tensor(name, 4) for name in ("x", "y", "z")]
    check(model, signature([X], outputs, [H], layout="time_batch"), tmp_path, tolerance=1e-5)


@pytest.mark.parametrize("scatter", SCATTERS)
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("float16", 10), ("float64", 11), ("int64", 7), ("int32", 6), ("uint8", 2), ("bool", 9)],
)
def test_states_of_every_dtype_and_axis_wait_for_their_read(
    dtype: str, kind: int, scatter: str, tmp_path: Path
) -> None:
    """A delay line: what comes out is what went in a step before, so a write before the read would show."""
    model = parse(
        "(float[b,2] x, uint8[3,2,b] h) => (float[b,2] y, uint8[3,2,b] h_next)"
        "{ y0 = Cast<to = 1>(h) y1 = Transpose<perm = [2,0,1]>(y0) at = Constant<value_ints = [1]>()"
        "  y2 = ReduceSum<keepdims = 0>(y1, at) y = Identity(y2)"
        "  back = Transpose<perm = [1,0]>(x) size = Constant<value_ints = [3,1,1]>() many = Expand(back, size)"
        "  h_next = Cast<to = 2>(many) }"
    )
    for value in (model.graph.input[1], model.graph.output[1]):
        value.type.tensor_type.elem_type = kind
    model.graph.node[-1].attribute[0].i = kind
    x = tensor("x", 2)
    described = signature([x], [tensor("y", 2)], [state("h", "h_next", 3, 2, axis=2, dtype=dtype, initial=1)])
    in_pool = InPool(pool_states(model, described, scatter=scatter), described, 6)  # type: ignore[arg-type]
    first = np.array([[1, 2], [0, 3]], np.float32)
    given = in_pool.step({"x": first}, [0, 0], [5, 2])["y"]
    np.testing.assert_array_equal(given, np.full((2, 2), 3))
    given = in_pool.step({"x": first * 0}, [5, 2], [5, 2])["y"]
    np.testing.assert_array_equal(given, 3 * first.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("scatter", SCATTERS)
def test_a_number_a_session_is_a_state(scatter: str, tmp_path: Path) -> None:
    model = parse(
        "(float[b,4] x, int64[b] h) => (float[b,4] y, int64[b] h_next)"
        "{ one = Constant<value = int64 {1}>() h_next = Add(h, one) f = Cast<to = 1>(h)"
        "  axes = Constant<value_ints = [1]>() col = Unsqueeze(f, axes) y = Mul(x, col) }"
    )
    check(
        model,
        signature([X], [Y], [state("h", "h_next", dtype="int64", initial=7)]),
        tmp_path,
        scatter=scatter,
    )


def test_names_may_hold_any_character(tmp_path: Path) -> None:
    names = ("serving/x:0", "h 1\n", "état", "streamcell.pool.h 1\n", "")
    model = parse(BORDER + "{ k = Neg(h) y = Identity(k) h_next = Identity(x) }")
    renamed = {"x": names[0], "h": names[1], "h_next": names[2], "k": names[3]}
    for value in (*model.graph.input, *model.graph.output):
        value.name = renamed.get(value.name, value.name)
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [renamed.get(name, name) for name in values]
    check(model, signature([tensor(names[0], 4)], [Y], [state(names[1], names[2], 4)]), tmp_path)


def test_a_fork_reads_one_row_and_writes_another() -> None:
    model = parse(BORDER + "{ h_next = Add(x, h) y = Identity(h_next) }")
    described = signature([X], [Y], [H])
    in_pool = InPool(pool_states(model, described), described, 4)
    one = np.ones((1, 4), np.float32)
    in_pool.step({"x": one}, [0], [1])
    in_pool.step({"x": np.repeat(one, 2, 0)}, [1, 1], [1, 2])
    np.testing.assert_array_equal(in_pool.memory[0][:, 0], [0, 2, 2, 0])


def test_the_pool_is_updated_where_it_lies() -> None:
    """The output is the input's memory, and nothing of the pool's size is allocated for a run."""
    model = parse(BORDER + "{ h_next = Tanh(h) y = Add(x, h) }")
    described = signature([X], [Y], [H])
    in_pool = InPool(pool_states(model, described), described, 100)
    in_pool.step({"x": np.ones((2, 4), np.float32)}, [0, 0], [3, 4])
    assert in_pool.values[0].data_ptr() == in_pool.memory[0].ctypes.data
    binding = in_pool.session.io_binding()
    binding.bind_cpu_input("x", np.ones((1, 4), np.float32))
    binding.bind_cpu_input(READ_SLOTS, np.zeros(1, np.int64))
    binding.bind_cpu_input(WRITE_SLOTS, np.full((1, 1), 9, np.int64))
    binding.bind_ortvalue_input(in_pool.pools[0].input, in_pool.values[0])
    binding.bind_ortvalue_output(in_pool.pools[0].output, in_pool.values[0])
    in_pool.session.run_with_iobinding(binding)
    (given,) = binding.get_outputs()
    assert given.data_ptr() == in_pool.memory[0].ctypes.data


def test_constants_and_defaults_are_fixed_in_the_graph(tmp_path: Path) -> None:
    model = parse(
        "(float[b,4] x, float[b,4] h, int64 rate, float[1] gain, float[1] bias) => (float[b,4] y, float[b,4] h_next)"
        "<float[1] gain = {3}, float[1] bias = {5}>"
        "{ f = Cast<to = 1>(rate) a = Mul(x, f) h_next = Add(a, h) g = Mul(h_next, gain) y = Add(g, bias) }"
    )
    constants = {"rate": np.array(16, np.int64), "bias": np.array([7], np.float32)}
    in_pool = check(model, signature([X], [Y], [H]), tmp_path, constants)
    given = {i.name for i in in_pool.session.get_inputs()}
    assert given == {"x", READ_SLOTS, WRITE_SLOTS, in_pool.pools[0].input}


def test_inputs_and_states_lose_their_defaults(tmp_path: Path) -> None:
    model = parse(
        "(float[1,4] x, float[1,4] h) => (float[b,4] y, float[b,4] h_next)"
        "<float[1,4] x = {9,9,9,9}, float[1,4] h = {8,8,8,8}> { h_next = Add(x, h) y = Neg(h) }"
    )
    check(model, signature([X], [Y], [H]), tmp_path)


def test_a_batch_of_the_example_is_opened_where_the_signature_has_no_bound(tmp_path: Path) -> None:
    text = "(float[1,4] x, float[2,1,4] h) => (float[1,4] y, float[2,1,4] h_next) <float[1,4] s> {"
    model = parse(text.replace(" <float[1,4] s>", "") + "s = Add(x, x) h_next = Add(h, s) y = Neg(s) }")
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 4]))
    in_pool = check(model, signature([X], [Y], [state("h", "h_next", 2, 4, axis=1)]), tmp_path)
    assert in_pool.session.get_inputs()[0].shape == ["batch", 4]


def test_a_fixed_batch_stays_fixed_where_the_signature_says_so(tmp_path: Path) -> None:
    model = parse(
        "(float[2,4] x, float[2,4] h) => (float[2,4] y, float[2,4] h_next)"
        "{ size = Constant<value_ints = [2,4]>() r = Reshape(x, size) h_next = Add(h, r) y = Neg(h) }"
    )
    described = signature([X], [Y], [H], max_batch=2)
    pooled = pool_states(model, described)
    assert pooled.fixed_batch == 2
    in_pool = InPool(pooled, described, 5)
    in_pool.step({"x": np.array([[1.0] * 4, [2.0] * 4], np.float32)}, [0, 0], [4, 1])
    np.testing.assert_array_equal(in_pool.memory[0][:, 0], [0, 2, 0, 0, 1])
    assert pool_states(parse(BORDER + "{ y = Neg(x) h_next = Neg(h) }"), described).fixed_batch is None


def test_declared_shapes_that_contradict_are_forgotten(tmp_path: Path) -> None:
    model = parse(BORDER + "{ s = Add(x, h) y = Neg(s) h_next = Identity(s) }")
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [17, 3]))
    check(model, signature([X], [Y], [H]), tmp_path)


def test_outputs_that_nobody_asked_for_are_not_computed() -> None:
    model = parse(
        "(float[b,4] x, float[b,4] h) => (float[b,4] y, float[b,4] spare, float[b,4] h_next)"
        "{ y = Neg(x) spare = Exp(x) h_next = Add(h, x) }"
    )
    pooled = pool_states(model, signature([X], [Y], [H]))
    assert [o.name for o in pooled.model.graph.output] == ["y", pooled.pools[0].output]


def test_a_model_without_states_gets_no_slots(tmp_path: Path) -> None:
    model = parse("(float[t,b,4] x) => (float[t,b,4] y) { y = Neg(x) }")
    pooled = pool_states(model, signature([X], [Y], [], layout="time_batch"))
    assert pooled.pools == ()
    assert [i.name for i in pooled.model.graph.input] == ["x"]
    check(model, signature([X], [Y], [], layout="time_batch"), tmp_path)


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 3), (10, 5), (11, 6), (21, 10)])
def test_opsets_and_ir_versions_old_and_new(opset: int, ir_version: int, tmp_path: Path) -> None:
    model = parse(
        "(float[b,4] x, float[b,4] h, float[1,4] w) => (float[b,4] y, float[b,4] h_next) <float[1,4] w = {1,2,3,4}>"
        "{ a = Mul(x, w) h_next = Add(h, a) y = Identity(h) }",
        opset,
        ir_version,
    )
    check(model, signature([X], [Y], [H]), tmp_path)


def test_an_opset_that_cannot_be_converted_is_refused() -> None:
    model = parse(BORDER + "{ k = MaxUnpool(x, x) y = Neg(k) h_next = Identity(h) }", 8)
    with pytest.raises(RewriteError, match=r"opset 8.*needs 11"):
        pool_states(model, signature([X], [Y], [H]))


def test_a_pooled_graph_is_not_pooled_twice() -> None:
    described = signature([X], [Y], [H])
    pooled = pool_states(parse(BORDER + "{ y = Neg(h) h_next = Identity(x) }"), described)
    again = signature([X], [Y], [state(pooled.pools[0].input, pooled.pools[0].output, 4)])
    inputs = [*again.inputs, Tensor(name=READ_SLOTS, dtype="int64")]
    inputs.append(Tensor(name=WRITE_SLOTS, dtype="int64", step_shape=(1,)))
    with pytest.raises(RewriteError, match="reserved name"):
        pool_states(pooled.model, again.model_copy(update={"inputs": tuple(inputs)}))


@pytest.mark.parametrize(
    ("initial", "dtype"),
    [(0.5, "int64"), (300.0, "uint8"), (1e39, "float32"), (2.0, "bool"), (-1.0, "uint32")],
)
def test_an_initial_value_that_the_dtype_cannot_hold_is_refused(initial: float, dtype: str) -> None:
    with pytest.raises(RewriteError, match=f"does not fit {dtype}"):
        initial_value(state("h", "h_next", 4, dtype=dtype, initial=initial))


def test_initial_values_are_one_number_or_all_of_them_in_order() -> None:
    np.testing.assert_array_equal(initial_value(state("h", "o", 2, 2, initial=1.5)), np.full((2, 2), 1.5))
    every = initial_value(state("h", "o", 2, 2, dtype="float16", initial=(1.0, 2.0, 3.0, 4.0)))
    np.testing.assert_array_equal(every, [[1, 2], [3, 4]])
    assert every.dtype == np.float16
    with pytest.raises(ValueError, match="read-only"):
        every[0, 0] = 5


WRONG: dict[str, tuple[Callable[[], Signature], dict[str, Any], str]] = {
    "no such input": (lambda: signature([tensor("z", 4)], [Y], [H]), {}, "no input 'z'"),
    "no such output": (lambda: signature([X], [tensor("z", 4)], [H]), {}, "no output 'z'"),
    "no such state": (lambda: signature([X], [Y], [state("k", "h_next", 4)]), {}, "no state input 'k'"),
    "no such state output": (lambda: signature([X], [Y], [state("h", "k", 4)]), {}, "no state output 'k'"),
    "dtype": (lambda: signature([tensor("x", 4, dtype="int32")], [Y], [H]), {}, "expected int32.*float32"),
    "size": (lambda: signature([X], [Y], [state("h", "h_next", 5)]), {}, r"expected \[batch, 5\].*\[b, 4\]"),
    "rank": (lambda: signature([tensor("x", 2, 2)], [Y], [H]), {}, r"expected \[batch, 2, 2\]"),
    "layout": (lambda: signature([X], [Y], [H], layout="batch_time"), {}, r"expected \[batch, time, 4\]"),
    "fixed time": (
        lambda: signature([tensor("x")], [tensor("y")], [H], layout="batch_time"),
        {},
        "fixes the time axis at 4",
    ),
    "hungry input": (lambda: signature([X], [Y], []), {}, "nothing feeds.*h: float32"),
    "no such constant": (lambda: signature([X], [Y], [H]), {"r": np.zeros(1)}, "no constant 'r'"),
    "constant twice": (lambda: signature([X], [Y], [H]), {"h": np.zeros((1, 4), np.float32)}, "too: h"),
    "constant's dtype": (lambda: signature([X], [Y], []), {"h": np.zeros((1, 4))}, "expected float64"),
    "constant's shape": (lambda: signature([X], [Y], []), {"h": np.zeros(3, np.float32)}, r"shape is \(3,\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_signature_that_is_not_the_graphs_is_refused(case: str) -> None:
    make, constants, message = WRONG[case]
    model = parse(BORDER + "{ y = Neg(h) h_next = Add(h, x) }")
    with pytest.raises(SignatureError, match=message):
        pool_states(model, make(), constants)


def test_a_bound_that_is_not_the_graphs_batch_is_refused() -> None:
    model = parse(
        "(float[1,4] x, float[1,4] h) => (float[1,4] y, float[1,4] h_next) { y = Neg(h) h_next = Neg(x) }"
    )
    with pytest.raises(SignatureError, match="max_batch is 4"):
        pool_states(model, signature([X], [Y], [H], max_batch=4))
