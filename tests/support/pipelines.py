"""Pipelines of several files, and how a step of each is run by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.support.onnx_files import parsed, save

SIDE = 'layout = "batch"\ninputs = ["a.x"]\noutputs = ["b.y"]\n'
STAGES = '[[stages]]\nfile = "a.onnx"\n[[stages]]\nfile = "b.onnx"\nwires = { x = "a.y" }\n'
PLAIN = "(float[n,3] x) => (float[n,3] y) { y = Tanh(x) }"

Arrays = dict[str, np.ndarray]
# What a test calls a graph of the stage `file` with; gives the outputs by name.
Call = Callable[[str, Arrays], Arrays]


def recurrent() -> onnx.ModelProto:
    """z [b, time, 4], s [1, b, 5] → out [b, time, 5], s_next; a GRU."""
    rng = np.random.default_rng(4)
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [
            helper.make_node("Transpose", ["z"], ["seq"], perm=[1, 0, 2]),
            helper.make_node("GRU", ["seq", "W", "R", "", "", "s"], ["all", "s_next"], hidden_size=5),
            helper.make_node("Squeeze", ["all", "one"], ["tb"]),
            helper.make_node("Transpose", ["tb"], ["out"], perm=[1, 0, 2]),
        ],
        "g",
        [value("z", TensorProto.FLOAT, ["b", "time", 4]), value("s", TensorProto.FLOAT, [1, "b", 5])],
        [value("out", TensorProto.FLOAT, ["b", "time", 5]), value("s_next", TensorProto.FLOAT, [1, "b", 5])],
        [
            numpy_helper.from_array(rng.standard_normal((1, 15, 4)).astype(np.float32), "W"),
            numpy_helper.from_array(rng.standard_normal((1, 15, 5)).astype(np.float32), "R"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# As DTLN's two models: fixed sizes, a state in each; both call their values alike.
FIRST = """(float[1,1,4] input_2, float[1,2,4] input_3) => (float[1,1,4] output_1, float[1,2,4] output_2)
    <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, float[4] w = {0.5, -0.5, 1, 2}> {
        newest = Slice(input_3, one, two, one)  all = Add(input_2, newest)  scaled = Mul(all, w)
        output_1 = Sigmoid(scaled)  output_2 = Concat<axis = 1>(newest, input_2)
    }"""
SECOND = """(float[1,1,4] input_4, float[1,2,4] input_5) => (float[1,1,4] output_3, float[1,2,4] output_4)
    <int64[1] one = {1}, float[4] w = {1, 2, 3, 4}> {
        mean = ReduceMean<axes = [1], keepdims = 1>(input_5)  all = Mul(input_4, w)  output_3 = Add(all, mean)
        output_4 = Add(input_5, input_4)
    }"""
# A body that reads an initializer, an input and a value from around it.
BRANCHES = """(float[b,time,4] x) => (float[b,time,4] y) <float[4] w = {0.1, 0.2, 0.3, 0.4}, float zero = {0}> {
        doubled = Add(x, x)  total = ReduceSum<keepdims = 0>(x)  loud = Greater(zero, zero)
        y = If (loud) <
            then_branch = a () => (float[b,time,4] p) { p = Identity(x) },
            else_branch = c () => (float[b,time,4] q) { q = Mul(doubled, w) }
        >
    }"""
WEIGHED = """(float[b,4] x, float[b,4] h) => (float[b,4] y, float[b,4] h_next) <float[4] w = {W}> {
        h_next = Add(h, x)  scaled = Mul(h_next, w)  y = Tanh(scaled)
    }"""
JOIN = "(float[b,4] p, float[b,4] q, float[b,4] x) => (float[b,4] y) { m = Mul(p, q)  y = Sub(m, x) }"


def write(folder: Path, files: dict[str, onnx.ModelProto], toml: str, name: str = "pipe") -> Path:
    for file, model in files.items():
        save(model, folder / f"{file}.onnx")
    path = folder / f"{name}.toml"
    path.write_text(toml)
    return path


def two_in_a_row(folder: Path) -> None:
    files = {"dtln/model_1": parsed(FIRST), "dtln/model_2": parsed(SECOND, 13)}
    write(
        folder,
        files,
        """
        layout = "batch"
        inputs = ["first.input_2"]
        outputs = ["second.output_3"]
        [[stages]]
        file = "dtln/model_1.onnx"
        name = "first"
        [[stages]]
        file = "dtln/model_2.onnx"
        name = "second"
        wires = { input_4 = "first.output_1" }
        [[states]]
        input = "first.input_3"
        output = "first.output_2"
        batch_axis = 0
        [[states]]
        input = "second.input_5"
        output = "second.output_4"
        batch_axis = 0
        initial = 0.5
        """,
        "dtln",
    )


def two_in_a_row_step(call: Call, x: np.ndarray, s: Arrays) -> np.ndarray:
    first = call("dtln/model_1", {"input_2": x[None], "input_3": s.get("a", np.zeros((1, 2, 4), np.float32))})
    held = s.get("b", np.full((1, 2, 4), 0.5, np.float32))
    second = call("dtln/model_2", {"input_4": first["output_1"], "input_5": held})
    s["a"], s["b"] = first["output_2"], second["output_4"]
    return second["output_3"][0]


def features(folder: Path) -> None:
    files = {"extractor": parsed(BRANCHES, 11), "net": recurrent()}
    write(
        folder,
        files,
        """
        layout = "batch_time"
        inputs = ["extractor.x"]
        outputs = ["net.out", "extractor.y"]
        [[stages]]
        file = "net.onnx"
        wires = { z = "extractor.y" }
        [[stages]]
        file = "extractor.onnx"
        [[states]]
        input = "net.s"
        output = "net.s_next"
        """,
        "features",
    )


def features_step(call: Call, x: np.ndarray, s: Arrays) -> np.ndarray:
    y = call("extractor", {"x": x[None, None]})["y"]
    made = call("net", {"z": y, "s": s.get("s", np.zeros((1, 1, 5), np.float32))})
    s["s"] = made["s_next"]
    return made["out"][0, 0]


def two_readers(folder: Path) -> None:
    files = {
        "source": parsed(WEIGHED.replace("W", "1, 1, 1, 1")),
        "left": parsed(WEIGHED.replace("W", "1, 2, 3, 4")),
        "right": parsed(WEIGHED.replace("W", "-1, 0.5, 1, 2"), 15),
        "join": parsed(JOIN),
    }
    sides = "".join(
        f"""
        [[stages]]
        file = "{name}.onnx"
        wires = {{ x = "source.y" }}
        [[states]]
        input = "{name}.h"
        output = "{name}.h_next"
        """
        for name in ("left", "right")
    )
    write(
        folder,
        files,
        f"""
        layout = "batch"
        inputs = ["frame"]
        outputs = ["join.y"]
        [[stages]]
        file = "join.onnx"
        wires = {{ p = "left.y", q = "right.y", x = "frame" }}
        [[stages]]
        file = "source.onnx"
        wires = {{ x = "frame" }}
        {sides}
        [[states]]
        input = "source.h"
        output = "source.h_next"
        """,
        "readers",
    )


def two_readers_step(call: Call, x: np.ndarray, s: Arrays) -> np.ndarray:
    def weighed(name: str, given: np.ndarray) -> np.ndarray:
        made = call(name, {"x": given, "h": s.get(name, np.zeros((1, 4), np.float32))})
        s[name] = made["h_next"]
        return made["y"]

    y = weighed("source", x[None])
    joined = call("join", {"p": weighed("left", y), "q": weighed("right", y), "x": x[None]})
    return joined["y"][0]


def without_a_batch(folder: Path) -> None:
    text = """(float[4] x, float[5] h) => (float[4] y, float[5] h_next) {
        a = ReduceMean<keepdims = 0>(h)  y = Add(x, a)  b = ReduceMean<keepdims = 0>(x)  h_next = Add(h, b)
    }"""
    write(
        folder,
        {"parts/alone": parsed(text)},
        """
        layout = "batch"
        batch_axis = "none"
        inputs = ["a.x"]
        outputs = ["b.y"]
        [[stages]]
        file = "parts/alone.onnx"
        name = "a"
        [[stages]]
        file = "parts/alone.onnx"
        name = "b"
        wires = { x = "a.y" }
        [[states]]
        input = "a.h"
        output = "a.h_next"
        [[states]]
        input = "b.h"
        output = "b.h_next"
        """,
        "twice",
    )


def without_a_batch_step(call: Call, x: np.ndarray, s: Arrays) -> np.ndarray:
    for name in ("a", "b"):
        made = call("parts/alone", {"x": x, "h": s.get(name, np.zeros(5, np.float32))})
        x, s[name] = made["y"], made["h_next"]
    return x


Step = Callable[[Call, np.ndarray, Arrays], np.ndarray]
# Each: what writes it; a step by hand; the shape of a step.
PIPELINES: dict[str, tuple[Callable[[Path], None], Step, tuple[int, ...]]] = {
    "dtln": (two_in_a_row, two_in_a_row_step, (1, 4)),
    "features": (features, features_step, (4,)),
    "readers": (two_readers, two_readers_step, (4,)),
    "twice": (without_a_batch, without_a_batch_step, (4,)),
}


def by_hand(folder: Path, name: str, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime gives for x [steps, …], the files run one after another as the pipeline says."""
    sessions: dict[str, ort.InferenceSession] = {}

    def call(file: str, feeds: Arrays) -> Arrays:
        session = sessions.get(file)
        if session is None:
            path = folder / f"{file}.onnx"
            session = sessions[file] = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    states: Arrays = {}
    return np.stack([PIPELINES[name][1](call, step, states) for step in x])
