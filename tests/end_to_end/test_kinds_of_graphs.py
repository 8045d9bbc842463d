"""Kinds of ONNX files that keep working: interleaved sessions get what ONNX Runtime gives each of them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.service.engine.device import Device
from streamcell.service.lifecycle.loaded_model import load
from streamcell.service.repository.model_file import open_model
from streamcell.service.settings import Settings
from tests.support.onnx_files import parsed

Array = np.ndarray[Any, Any]
SESSIONS, TIME = 4, 8


@dataclass(frozen=True)
class Kind:
    """A graph that takes x [batch, 3] and gives y of that shape; a state `s` comes out as `s_next`.

    Attributes:
        model: the graph, which says enough by itself.
        states: by name, what ONNX Runtime is given before the first step.
        external: whether its weights lie in another file.
    """

    model: onnx.ModelProto
    states: dict[str, Array]
    external: bool = False


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


def half() -> Kind:
    text = "(float16[b, 3] x, float16[b, 3] s) => (float16[b, 3] y, float16[b, 3] s_next)"
    body = (
        "half = Constant<value_float = 0.5>() h = CastLike(half, x) k = Mul(s, h) s_next = Add(k, x) "
        "y = Tanh(s_next)"
    )
    return Kind(parsed(f"{text} {{ {body} }}", 19), {"s": zeros(1, 3, dtype=np.float16)})


def integers() -> Kind:
    """An int64 state of one number a session, beside one as wide as the input."""
    text = (
        "(int64[b, 3] x, int64[b] count, int64[b, 3] total) => "
        "(int64[b, 3] y, int64[b] count_next, int64[b, 3] total_next)"
    )
    body = (
        "one = Constant<value_int = 1>() axes = Constant<value_ints = [1]>() count_next = Add(count, one) "
        "total_next = Add(total, x) column = Unsqueeze(count_next, axes) y = Div(total_next, column)"
    )
    states = {"count": zeros(1, dtype=np.int64), "total": zeros(1, 3, dtype=np.int64)}
    return Kind(parsed(f"{text} {{ {body} }}"), states)


def axes() -> Kind:
    """Batch axes 0, 1 and 2, of states whose other sizes are 1, 2 and 3."""
    text = (
        "(float[b, 3] x, float[b, 3] s, float[2, b, 3] t, float[1, 3, b] u) => "
        "(float[b, 3] y, float[b, 3] s_next, float[2, b, 3] t_next, float[1, 3, b] u_next)"
    )
    body = (
        "axes = Constant<value_ints = [0]>() s_next = Add(s, x) first, second = Split<axis = 0>(t) "
        "xl = Unsqueeze(x, axes) older = Sub(second, xl) t_next = Concat<axis = 0>(older, first) "
        "xt = Transpose<perm = [1, 0]>(x) xu = Unsqueeze(xt, axes) half = Constant<value_float = 0.5>() "
        "uh = Mul(u, half) u_next = Add(uh, xu) um = Squeeze(u_next, axes) ub = Transpose<perm = [1, 0]>(um) "
        "fm = Squeeze(first, axes) a = Add(s_next, fm) y = Add(a, ub)"
    )
    states = {"s": zeros(1, 3), "t": zeros(2, 1, 3), "u": zeros(1, 3, 1)}
    return Kind(parsed(f"{text} {{ {body} }}"), states)


def external() -> Kind:
    text = "(float[b, 3] x, float[b, 64] s) => (float[b, 3] y, float[b, 64] s_next)"
    body = "a = MatMul(x, w) c = MatMul(s, r) d = Add(a, c) s_next = Tanh(d) y = MatMul(s_next, o)"
    rng = np.random.default_rng(2)
    shapes = {"w": (3, 64), "r": (64, 64), "o": (64, 3)}
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    model = parsed(f"{text} {{ {body} }}", **weights)
    return Kind(model, {"s": zeros(1, 64)}, external=True)


BORDER = "(float[b, 3] x, float[b, 3] s) => (float[b, 3] y, float[b, 3] s_next)"


def one_if() -> Kind:
    """Both branches read the state from the graph around them. A step has three elements, so one is always taken."""
    branches = (
        "then_branch = yes () => (float[b, 3] p) { p = Add(s, x) }, "
        "else_branch = no () => (float[b, 3] q) { q = Sub(s, x) }"
    )
    body = (
        "shape = Shape<start = 1>(x) three = Constant<value_ints = [3]>() equal = Equal(shape, three) "
        f"s_next = If (equal) <{branches}> y = Tanh(s_next)"
    )
    return Kind(parsed(f"{BORDER} {{ {body} }}"), {"s": zeros(1, 3)})


def one_loop() -> Kind:
    """Three rounds over the state in the body of a Loop, which reads x from the graph around it."""
    loop = (
        "(int64 i, bool go, float[n, 3] h) => (bool on, float[n, 3] h_next) "
        "{ on = Identity(go) k = Mul(h, rate) m = Add(k, x) h_next = Tanh(m) }"
    )
    body = (
        "rate = Constant<value_float = 0.7>() three = Constant<value_int = 3>() "
        f"s_next = Loop (three, , s) <body = round {loop}> y = Neg(s_next)"
    )
    return Kind(parsed(f"{BORDER} {{ {body} }}"), {"s": zeros(1, 3)})


def one_scan() -> Kind:
    """Over a step's own three elements, the state carried through the body."""
    scan = (
        "(float[n, 3] h, float[n] e) => (float[n, 3] h_next, float[n] out) "
        "{ axes = Constant<value_ints = [1]>() c = Unsqueeze(e, axes) m = Add(h, c) h_next = Tanh(m) "
        "none = Constant<value_int = 0>() out = Gather<axis = 1>(h_next, none) }"
    )
    body = (
        "s_next, parts = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], "
        f"body = each {scan}> (s, x) y = Identity(parts)"
    )
    return Kind(parsed(f"{BORDER} {{ {body} }}"), {"s": zeros(1, 3)})


def of_opset(opset: int) -> Kind:
    """An LSTM of one step, and operators that were rewritten in opsets 10, 11 and 13."""
    rng = np.random.default_rng(opset)
    value = helper.make_tensor_value_info
    constants = {
        "w": rng.normal(0, 0.5, (1, 16, 3)).astype(np.float32),
        "r": rng.normal(0, 0.5, (1, 16, 4)).astype(np.float32),
        **{f"c{n}": np.array([n], np.int64) for n in (0, 1, 3)},
        "low": np.array(-0.4, np.float32),
        "high": np.array(0.4, np.float32),
    }

    def with_axes(op: str, read: str, made: str, axis: int) -> onnx.NodeProto:
        if opset >= 13:
            return helper.make_node(op, [read, f"c{axis}"], [made])
        return helper.make_node(op, [read], [made], axes=[axis])

    if opset >= 10:
        cut = helper.make_node("Slice", ["flat", "c0", "c3", "c1"], ["three"])
    else:
        cut = helper.make_node("Slice", ["flat"], ["three"], starts=[0], ends=[3], axes=[1])
    if opset >= 11:
        bound = helper.make_node("Clip", ["three", "low", "high"], ["y"])
    else:
        bound = helper.make_node("Clip", ["three"], ["y"], min=-0.4, max=0.4)
    nodes = [
        with_axes("Unsqueeze", "x", "xt", 0),
        helper.make_node("LSTM", ["xt", "w", "r", "", "", "h", "c"], ["", "h_next", "c_next"], hidden_size=4),
        with_axes("Squeeze", "h_next", "flat", 0),
        cut,
        bound,
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["b", 3]), *(value(n, TensorProto.FLOAT, [1, "b", 4]) for n in "hc")],
        [
            value("y", TensorProto.FLOAT, ["b", 3]),
            *(value(f"{n}_next", TensorProto.FLOAT, [1, "b", 4]) for n in "hc"),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if opset < 9:  # the converter of these opsets looks for weights among the inputs, as they had to be then
        model.ir_version = 3
        for tensor in graph.initializer:
            model.graph.input.append(value(tensor.name, tensor.data_type, list(tensor.dims)))
    return Kind(model, {"h": zeros(1, 1, 4), "c": zeros(1, 1, 4)})


KINDS: dict[str, Kind] = {
    "half": half(),
    "integers": integers(),
    "axes": axes(),
    "external": external(),
    "if": one_if(),
    "loop": one_loop(),
    "scan": one_scan(),
    **{f"opset{opset}": of_opset(opset) for opset in (*range(7, 14), 15, 17, 19, 21)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for name, kind in KINDS.items():
        path = folder / f"{name}.onnx"
        if kind.external:
            onnx.save(kind.model, path, save_as_external_data=True, location=f"{name}.bin", size_threshold=0)
        else:
            onnx.save(kind.model, path)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_the_path_of_a_card_proves_every_kind(folder: Path, name: str) -> None:
    settings = Settings.load(models=folder, max_batch=4, max_sessions=20)
    model = load(open_model(folder / f"{name}.onnx", name), settings, Device(apart=True))
    model.runner.stop()
    assert model.restrictions == ()


def alone(path: Path, x: Array, states: dict[str, Array]) -> Array:
    """What ONNX Runtime gives for x [time, 3], step by step."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = [node.name for node in session.get_outputs()]
    outputs = []
    for step in x:
        made = dict(zip(given, session.run(given, {"x": step[None], **states}), strict=True))
        outputs.append(made["y"][0])
        states = {
            name: made[name.replace("_in", "_out") if "_in" in name else f"{name}_next"] for name in states
        }
    return np.stack(outputs)


def test_every_kind_is_served_as_onnx_runtime_runs_it(
    folder: Path,
    start_server: Callable[..., ServerProcess],
    interleaved: Callable[..., dict[str, Array]],
) -> None:
    x = np.random.default_rng(1).standard_normal((SESSIONS, TIME, 3)).astype(np.float32)
    given = dict.fromkeys(KINDS, x)
    given["half"] = x.astype(np.float16)
    given["integers"] = (10 * x).astype(np.int64)
    server = start_server(folder)
    with connect(server.target) as client:
        assert [list(client.model(name).restrictions) for name in KINDS] == [[]] * len(KINDS)
        got = interleaved(client, given, 4)
    assert (folder / "external.bin").stat().st_size > 4 * 64 * 64
    for name, kind in KINDS.items():
        expected = np.stack([alone(folder / f"{name}.onnx", row, kind.states) for row in given[name]])
        assert got[name].dtype == expected.dtype
        tolerance = 2e-3 if name == "half" else 1e-5
        np.testing.assert_allclose(got[name], expected, rtol=tolerance, atol=tolerance, err_msg=name)
