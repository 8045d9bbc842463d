"""Graphs that no exporter of ours wrote give in their pool what they give with states passed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from streamcell.card import Signature, State, Tensor
from streamcell.service.graph.pooled import READ_SLOTS, WRITE_SLOTS, pool_states
from tests.support.onnx_files import parsed

SCATTERS = ("nd", "elements")


def tensor(name: str, *shape: int, dtype: str = "float32") -> Tensor:
    return Tensor(name=name, dtype=dtype, step_shape=shape)  # type: ignore[arg-type]


def state(
    input_: str, output: str, *shape: int, axis: int = 0, dtype: str = "float32", initial: Any = 0.0
) -> State:
    return State(input=input_, output=output, dtype=dtype, shape=shape, batch_axis=axis, initial=initial)  # type: ignore[arg-type]


def signature(inputs: list[Tensor], outputs: list[Tensor], states: list[State], **more: Any) -> Signature:
    return Signature(inputs=inputs, outputs=outputs, states=states, **{"layout": "batch", **more})  # type: ignore[arg-type]


X, Y, H = tensor("x", 4), tensor("y", 4), state("h", "h_next", 4)
BORDER = "(float[b,4] x, float[b,4] h) => (float[b,4] y, float[b,4] h_next)"
TWO = "(float[b,4] x, float[b,4] h, float[b,4] c) => (float[b,4] y, float[b,4] h_next, float[b,4] c_next)"

# What the order of a pool's read and write hangs on, case by case.


LSTM = """(float[t,b,3] x, int32[b] n, float[1,b,4] h, float[1,b,4] c)
    => (float[t,d,b,4] raw, float[t,b,4] y, float[1,b,4] h_next, float[1,b,4] c_next)
    { raw, h_next, c_next = LSTM<hidden_size = 4>(x, w, r, bias, n, h, c) one = Constant<value_ints = [1]>()
      y = Squeeze(raw, one) }"""


def lstm(**more: Any) -> tuple[onnx.ModelProto, Signature]:
    """An LSTM operator as it is by nature: time first, states [layers, batch, hidden]."""
    rng = np.random.default_rng(1)
    model = parsed(LSTM)
    del model.graph.output[0]
    for name, shape in (("w", (1, 16, 3)), ("r", (1, 16, 4)), ("bias", (1, 32))):
        value = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    states = [state("h", "h_next", 1, 4, axis=1, initial=0.5), state("c", "c_next", 1, 4, axis=1)]
    return model, signature([tensor("x", 3)], [Y], states, layout="time_batch", lengths="n", **more)


@pytest.mark.parametrize("scatter", SCATTERS)
def test_time_first_recurrent_operator_with_ragged_lengths_is_served_batch_first(
    scatter: str, tmp_path: Path, check: Any
) -> None:
    model, described = lstm()
    pooled_run = check(model, described, tmp_path, scatter=scatter, tolerance=1e-5)
    assert [i.shape for i in pooled_run.session.get_inputs()[:1]] == [["batch", "time", 3]]
    optimised = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    # The dependency runs through the operator: nothing had to be added.
    assert "Cast" not in optimised
    assert "Add" not in optimised or scatter == "elements"


def test_lengths_of_another_integer_type_are_taken_as_int32(in_pool: Any) -> None:
    model = parsed(
        "(float[b,t,4] x, int64[b] n, float[b,4] h) => (float[b,t,4] y, float[b,4] h_next) {"
        " f = Cast<to = 1>(n) axes = Constant<value_ints = [1]>() col = Unsqueeze(f, axes) h_next = Add(h, col)"
        " mid = Unsqueeze(h, axes) y = Add(x, mid) }"
    )
    described = signature([X], [Y], [H], layout="batch_time", lengths="n")
    pooled_run = in_pool(pool_states(model, described), described, 4)
    feeds = {"x": np.zeros((2, 3, 4), np.float32), "n": np.array([3, 1], np.int32)}
    pooled_run.step(feeds, [0, 0], [1, 2])
    np.testing.assert_array_equal(pooled_run.memory[0][1:3, 0], [3, 1])


def test_time_first_outputs_that_are_inputs_or_feed_others_keep_their_values(
    tmp_path: Path, check: Any
) -> None:
    model = parsed(
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
    dtype: str, kind: int, scatter: str, in_pool: Any
) -> None:
    """A delay line: what comes out is what went in a step before, so a write before the read would show."""
    model = parsed(
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
    pooled_run = in_pool(pool_states(model, described, scatter=scatter), described, 6)  # type: ignore[arg-type]
    first = np.array([[1, 2], [0, 3]], np.float32)
    given = pooled_run.step({"x": first}, [0, 0], [5, 2])["y"]
    np.testing.assert_array_equal(given, np.full((2, 2), 3))
    given = pooled_run.step({"x": first * 0}, [5, 2], [5, 2])["y"]
    np.testing.assert_array_equal(given, 3 * first.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("scatter", SCATTERS)
def test_a_number_a_session_is_a_state(scatter: str, tmp_path: Path, check: Any) -> None:
    model = parsed(
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


def test_names_may_hold_any_character(tmp_path: Path, check: Any) -> None:
    names = ("serving/x:0", "h 1\n", "état", "streamcell.pool.h 1\n", "")
    model = parsed(BORDER + "{ k = Neg(h) y = Identity(k) h_next = Identity(x) }")
    renamed = {"x": names[0], "h": names[1], "h_next": names[2], "k": names[3]}
    for value in (*model.graph.input, *model.graph.output):
        value.name = renamed.get(value.name, value.name)
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [renamed.get(name, name) for name in values]
    check(model, signature([tensor(names[0], 4)], [Y], [state(names[1], names[2], 4)]), tmp_path)


def test_a_fork_reads_one_row_and_writes_another(in_pool: Any) -> None:
    model = parsed(BORDER + "{ h_next = Add(x, h) y = Identity(h_next) }")
    described = signature([X], [Y], [H])
    pooled_run = in_pool(pool_states(model, described), described, 4)
    one = np.ones((1, 4), np.float32)
    pooled_run.step({"x": one}, [0], [1])
    pooled_run.step({"x": np.repeat(one, 2, 0)}, [1, 1], [1, 2])
    np.testing.assert_array_equal(pooled_run.memory[0][:, 0], [0, 2, 2, 0])


def test_the_pool_is_updated_where_it_lies(in_pool: Any) -> None:
    """The output is the input's memory, and nothing of the pool's size is allocated for a run."""
    model = parsed(BORDER + "{ h_next = Tanh(h) y = Add(x, h) }")
    described = signature([X], [Y], [H])
    pooled_run = in_pool(pool_states(model, described), described, 100)
    pooled_run.step({"x": np.ones((2, 4), np.float32)}, [0, 0], [3, 4])
    assert pooled_run.values[0].data_ptr() == pooled_run.memory[0].ctypes.data
    binding = pooled_run.session.io_binding()
    binding.bind_cpu_input("x", np.ones((1, 4), np.float32))
    binding.bind_cpu_input(READ_SLOTS, np.zeros(1, np.int64))
    binding.bind_cpu_input(WRITE_SLOTS, np.full((1, 1), 9, np.int64))
    binding.bind_ortvalue_input(pooled_run.pools[0].input, pooled_run.values[0])
    binding.bind_ortvalue_output(pooled_run.pools[0].output, pooled_run.values[0])
    pooled_run.session.run_with_iobinding(binding)
    (given,) = binding.get_outputs()
    assert given.data_ptr() == pooled_run.memory[0].ctypes.data


def test_constants_and_defaults_are_fixed_in_the_graph(tmp_path: Path, check: Any) -> None:
    model = parsed(
        "(float[b,4] x, float[b,4] h, int64 rate, float[1] gain, float[1] bias) => (float[b,4] y, float[b,4] h_next)"
        "<float[1] gain = {3}, float[1] bias = {5}>"
        "{ f = Cast<to = 1>(rate) a = Mul(x, f) h_next = Add(a, h) g = Mul(h_next, gain) y = Add(g, bias) }"
    )
    constants = {"rate": np.array(16, np.int64), "bias": np.array([7], np.float32)}
    pooled_run = check(model, signature([X], [Y], [H]), tmp_path, constants)
    given = {i.name for i in pooled_run.session.get_inputs()}
    assert given == {"x", READ_SLOTS, WRITE_SLOTS, pooled_run.pools[0].input}


def test_inputs_and_states_lose_their_defaults(tmp_path: Path, check: Any) -> None:
    model = parsed(
        "(float[1,4] x, float[1,4] h) => (float[b,4] y, float[b,4] h_next)"
        "<float[1,4] x = {9,9,9,9}, float[1,4] h = {8,8,8,8}> { h_next = Add(x, h) y = Neg(h) }"
    )
    check(model, signature([X], [Y], [H]), tmp_path)


def test_a_batch_of_the_example_is_opened_where_the_signature_has_no_bound(
    tmp_path: Path, check: Any
) -> None:
    text = "(float[1,4] x, float[2,1,4] h) => (float[1,4] y, float[2,1,4] h_next) <float[1,4] s> {"
    model = parsed(text.replace(" <float[1,4] s>", "") + "s = Add(x, x) h_next = Add(h, s) y = Neg(s) }")
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 4]))
    pooled_run = check(model, signature([X], [Y], [state("h", "h_next", 2, 4, axis=1)]), tmp_path)
    assert pooled_run.session.get_inputs()[0].shape == ["batch", 4]


def test_a_fixed_batch_stays_fixed_where_the_signature_says_so(in_pool: Any) -> None:
    model = parsed(
        "(float[2,4] x, float[2,4] h) => (float[2,4] y, float[2,4] h_next)"
        "{ size = Constant<value_ints = [2,4]>() r = Reshape(x, size) h_next = Add(h, r) y = Neg(h) }"
    )
    described = signature([X], [Y], [H], max_batch=2)
    pooled = pool_states(model, described)
    assert pooled.fixed_batch == 2
    pooled_run = in_pool(pooled, described, 5)
    pooled_run.step({"x": np.array([[1.0] * 4, [2.0] * 4], np.float32)}, [0, 0], [4, 1])
    np.testing.assert_array_equal(pooled_run.memory[0][:, 0], [0, 2, 0, 0, 1])
    assert pool_states(parsed(BORDER + "{ y = Neg(x) h_next = Neg(h) }"), described).fixed_batch is None


def test_declared_shapes_that_contradict_are_forgotten(tmp_path: Path, check: Any) -> None:
    model = parsed(BORDER + "{ s = Add(x, h) y = Neg(s) h_next = Identity(s) }")
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [17, 3]))
    check(model, signature([X], [Y], [H]), tmp_path)


def test_a_model_without_states_gets_no_slots(tmp_path: Path, check: Any) -> None:
    model = parsed("(float[t,b,4] x) => (float[t,b,4] y) { y = Neg(x) }")
    pooled = pool_states(model, signature([X], [Y], [], layout="time_batch"))
    assert pooled.pools == ()
    assert [i.name for i in pooled.model.graph.input] == ["x"]
    check(model, signature([X], [Y], [], layout="time_batch"), tmp_path)


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 3), (10, 5), (11, 6), (21, 10)])
def test_opsets_and_ir_versions_old_and_new(opset: int, ir_version: int, tmp_path: Path, check: Any) -> None:
    model = parsed(
        "(float[b,4] x, float[b,4] h, float[1,4] w) => (float[b,4] y, float[b,4] h_next) <float[1,4] w = {1,2,3,4}>"
        "{ a = Mul(x, w) h_next = Add(h, a) y = Identity(h) }",
        opset,
        ir_version,
    )
    check(model, signature([X], [Y], [H]), tmp_path)


def test_functions_of_the_model_are_kept(tmp_path: Path, check: Any) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'
        f"g {BORDER} {{ h_next, y = own.delay(h, x) }}"
        '<domain: "own", opset_import: ["" : 17]> delay (h, x) => (new, old) { new = Identity(x) old = Neg(h) }'
    )
    check(model, signature([X], [Y], [H]), tmp_path)
