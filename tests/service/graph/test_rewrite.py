"""What the rewrite refuses, and what it declares; `tests/pooled` holds what rewritten graphs compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamcell.card import Signature, State, Tensor
from streamcell.service.graph.pooled import READ_SLOTS, WRITE_SLOTS, initial_value, pool_states
from streamcell.service.load_errors import RewriteError, SignatureError
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


def test_outputs_that_nobody_asked_for_are_not_computed() -> None:
    model = parsed(
        "(float[b,4] x, float[b,4] h) => (float[b,4] y, float[b,4] spare, float[b,4] h_next)"
        "{ y = Neg(x) spare = Exp(x) h_next = Add(h, x) }"
    )
    pooled = pool_states(model, signature([X], [Y], [H]))
    assert [o.name for o in pooled.model.graph.output] == ["y", pooled.pools[0].output]
    assert "Exp" not in [node.op_type for node in pooled.model.graph.node]


LAYERS = "(float[b,4] x, float[2,b,4] h) => (float[b,4] y, float[2,b,4] h_next)"
JOINED = "n1 = Add(first, x) n2 = Add(second, n1) h_next = Concat<axis=0>(n1, n2)"


def layered(body: str) -> list[str]:
    """The operators of a model whose state has two layers, in its pool as a card has it."""
    described = signature([X], [Y], [state("h", "h_next", 2, 4, axis=1)])
    pooled = pool_states(parsed(f"{LAYERS} {{ {body} }}"), described, few_kernels=True)
    return [node.op_type for node in pooled.model.graph.node]


def test_layers_of_a_state_are_cut_and_joined_without_a_transpose() -> None:
    ops = layered(f"first, second = Split<axis=0>(h) {JOINED} y = Neg(x)")
    assert "Transpose" not in ops
    assert ops.count("Concat") == 1, "the joining that nobody reads any more is not run"


@pytest.mark.parametrize(
    "body",
    [
        f"first, second = Split<axis=0>(h) {JOINED} y = ReduceSum<keepdims=0>(h)",
        f"g = Neg(h) first, second = Split<axis=0>(g) {JOINED} y = Neg(x)",
        "first, second = Split<axis=0>(h) n = Add(first, second) h_next = Add(h, n) y = Neg(n)",
    ],
)
def test_a_state_that_is_not_only_cut_or_not_joined_is_transposed(body: str) -> None:
    assert "Transpose" in layered(body)


def test_an_opset_that_cannot_be_converted_is_refused() -> None:
    model = parsed(BORDER + "{ k = MaxUnpool(x, x) y = Neg(k) h_next = Identity(h) }", 8)
    with pytest.raises(RewriteError, match=r"opset 8.*needs 11"):
        pool_states(model, signature([X], [Y], [H]))


def test_a_pooled_graph_is_not_pooled_twice() -> None:
    described = signature([X], [Y], [H])
    pooled = pool_states(parsed(BORDER + "{ y = Neg(h) h_next = Identity(x) }"), described)
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
    model = parsed(BORDER + "{ y = Neg(h) h_next = Add(h, x) }")
    with pytest.raises(SignatureError, match=message):
        pool_states(model, make(), constants)


def test_a_bound_that_is_not_the_graphs_batch_is_refused() -> None:
    model = parsed(
        "(float[1,4] x, float[1,4] h) => (float[1,4] y, float[1,4] h_next) { y = Neg(h) h_next = Neg(x) }"
    )
    with pytest.raises(SignatureError, match="max_batch is 4"):
        pool_states(model, signature([X], [Y], [H], max_batch=4))
