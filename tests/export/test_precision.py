"""Weights in fewer bits: the error is measured, bounded and written down; the computation stays float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from streamcell.export import ExportError, ProofError, export_model, precision
from streamcell.models import SequenceModel, build

KINDS: dict[str, dict[str, Any]] = {
    "rnn": {"hidden_size": 32, "num_layers": 2},
    "lstm": {"hidden_size": 32, "num_layers": 2},
    "gru": {"hidden_size": 32, "num_layers": 2},
    "mlp": {"hidden_sizes": [64, 64]},
    "tcn": {"channels": [32, 32], "batch_norm": True},
}


def make(kind: str) -> SequenceModel:
    torch.manual_seed(2)
    return build({"kind": kind, "input_size": 24, "output_size": 8, **KINDS[kind]}).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stored", "bound", "least"), [("fp16", 2e-3, 1e-6), ("int8", 5e-2, 1e-4)])
def test_every_kind_is_stored_small_and_its_error_is_in_the_card(
    kind: str, stored: str, bound: float, least: float, tmp_path: Path
) -> None:
    model = make(kind)
    export_model(model, tmp_path / "full.onnx")
    card = export_model(model, tmp_path / "small.onnx", precision=stored)
    assert card.precision == stored
    assert least < card.proof["max_error"] < bound
    assert {state.dtype for state in card.signature.states} <= {"float32"}
    weights = [i for i in onnx.load(tmp_path / "small.onnx").graph.initializer if i.data_type != 7]
    full = [i for i in onnx.load(tmp_path / "full.onnx").graph.initializer if i.data_type != 7]
    ratio = sum(len(i.raw_data) for i in weights) / sum(len(i.raw_data) for i in full)
    assert ratio < {"fp16": 0.56, "int8": 0.36}[stored]


@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_the_sums_over_other_keys_are_no_weight_that_is_rounded(stored: str, tmp_path: Path) -> None:
    settings = {"voices": 3, "distribution": "bernoulli_logits", **KINDS["lstm"]}
    model = build({"kind": "lstm", "input_size": 24, "output_size": 8, **settings}).eval()
    card = export_model(model, tmp_path / "m.onnx", precision=stored)
    assert card.proof["max_error"] < {"fp16": 2e-3, "int8": 5e-2}[stored]
    held = {i.name: numpy_helper.to_array(i) for i in onnx.load(tmp_path / "m.onnx").graph.initializer}
    np.testing.assert_array_equal(held["voices.others.float64"], model.voices.others.double())
    assert {held["head.weight." + stored].dtype} <= {np.dtype(np.float16), np.dtype(np.int8)}


@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_the_runtime_widens_the_weights_once(stored: str, tmp_path: Path) -> None:
    """After basic optimisation the graph that runs is the fp32 graph, node for node."""
    counts = []
    for name in ("fp32", stored):
        export_model(make("lstm"), tmp_path / f"{name}.onnx", precision=name)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / f"{name}.optimized.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(tmp_path / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        counts.append(Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node))
    assert counts[0] == counts[1]


def test_int8_rows_do_not_see_each_other(tmp_path: Path) -> None:
    """Where activations are quantised over the whole batch, a loud neighbour changes a row; here it must not."""
    model = make("lstm")
    export_model(model, tmp_path / "m.onnx", precision="int8")
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    quiet = np.random.default_rng(0).standard_normal((2, 5, 24)).astype(np.float32)
    loud = quiet * np.array([1, 100], np.float32)[:, None, None]

    def run(x: np.ndarray) -> np.ndarray:
        feed = {"x": x, "lengths": np.full(2, 5, np.int32)}
        feed |= {name: state.numpy() for name, state in zip("hc", model.initial_state(2), strict=True)}
        y: np.ndarray = session.run(["y"], feed)[0]
        return y

    np.testing.assert_array_equal(run(quiet)[0], run(loud)[0])


def test_an_error_over_the_tolerance_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="tolerance 1e-05"):
        export_model(make("gru"), tmp_path / "m.onnx", precision="int8", tolerance=1e-5)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_the_range_of_fp16_are_refused(tmp_path: Path) -> None:
    model = make("rnn")
    with torch.no_grad():
        model.head.weight[0, 0] = 70000.0
    with pytest.raises(ExportError, match=r"head\.weight holds 7e\+04, above fp16's maximum, 65504"):
        export_model(model, tmp_path / "m.onnx", precision="fp16")


def graph_of(node: onnx.NodeProto, weight: np.ndarray, x: list[int], y: list[int]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    kind = TensorProto.INT64 if node.op_type == "Gather" else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", kind, x)],
        [value("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("node", "shape", "x", "y", "axis"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (4, 6), [2, 4], [2, 6], 1),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (4, 6), [2, 4], [2, 6], 1),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (6, 4), [2, 4], [2, 6], 0),
        (helper.make_node("Conv", ["x", "w"], ["y"]), (6, 4, 3), [2, 4, 3], [2, 6, 1], 0),
        (helper.make_node("Gather", ["w", "x"], ["y"]), (6, 4), [2], [2, 4], 0),
    ],
)
def test_int8_has_a_scale_for_each_output_row(
    node: onnx.NodeProto, shape: tuple[int, ...], x: list[int], y: list[int], axis: int
) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal(shape).astype(np.float32)
    # Rows of very different size: one scale for all would lose the small ones.
    sizes = (10.0 ** -np.arange(shape[axis])).astype(np.float32)
    weight *= sizes.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    small = precision.store(graph_of(node, weight, x, y), "int8")
    held = {i.name: numpy_helper.to_array(i) for i in small.graph.initializer}
    assert held["w.int8"].dtype == np.int8
    assert held["w.scale"].size == shape[axis]
    widened = held["w.int8"] * held["w.scale"]
    largest = np.abs(weight).max(axis=tuple(a for a in range(len(shape)) if a != axis), keepdims=True)
    assert (np.abs(widened - weight) <= largest / 127 * 0.51).all()


def test_a_row_of_zeros_stays_zero() -> None:
    weight = np.zeros((4, 2), np.float32)
    weight[:, 1] = [1, -2, 0.5, 0]
    model = graph_of(helper.make_node("MatMul", ["x", "w"], ["y"]), weight, [1, 4], [1, 2])
    held = {i.name: numpy_helper.to_array(i) for i in precision.store(model, "int8").graph.initializer}
    np.testing.assert_array_equal((held["w.int8"] * held["w.scale"])[:, 0], 0)


def test_a_graph_without_weights_is_refused() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = graph_of(node, np.ones((4, 2), np.float64), [1, 4], [1, 2])
    with pytest.raises(ExportError, match="no float32 weights"):
        precision.store(model, "int8")
