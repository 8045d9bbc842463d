"""A pool is written where it lies, so every read of it must come first: for all operators and optimisation levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamcell.card import Signature, State, Tensor
from tests.support.onnx_files import parsed

LEVELS = ("off", "basic", "all")
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
    case: str, scatter: str, level: str, tmp_path: Path, check: Any
) -> None:
    text, described = ORDER[case]
    model = parsed(text, opset=18 if "num_outputs" in text else 17)
    check(model, described, tmp_path, scatter=scatter, level=level, batch=described.max_batch)
