"""The graphs themselves: versions, names, axes, few nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from streamcell.export import ExportError, export_model
from streamcell.export.graph import IR_VERSION, OPSET, GraphBuilder, check
from streamcell.models import build


def exported(path: Path, **config: Any) -> onnx.ModelProto:
    torch.manual_seed(0)
    lengths = config.pop("lengths", True)
    model = build({"input_size": 6, "output_size": 2, **config})
    export_model(model, path, lengths=lengths)
    return onnx.load(path)


def axes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def ops_at_run_time(path: Path, level: ort.GraphOptimizationLevel) -> Counter[str]:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def test_versions_are_those_of_the_lowest_runtime_supported(tmp_path: Path) -> None:
    model = exported(tmp_path / "m.onnx", kind="lstm", hidden_size=4)
    assert (OPSET, IR_VERSION) == (20, 10)  # ONNX Runtime 1.22 takes up to 23 and 11
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert model.producer_name == "streamcell"
    onnx.checker.check_model(model, full_check=True)


def test_names_and_axes_of_the_interface(tmp_path: Path) -> None:
    graph = exported(tmp_path / "m.onnx", kind="lstm", hidden_size=4, num_layers=3).graph
    assert {value.name: axes(value) for value in graph.input} == {
        "x": ["batch", "time", 6],
        "lengths": ["batch"],
        "h": [3, "batch", 4],
        "c": [3, "batch", 4],
    }
    assert {value.name: axes(value) for value in graph.output} == {
        "y": ["batch", "time", 2],
        "h_next": [3, "batch", 4],
        "c_next": [3, "batch", 4],
    }
    mlp = exported(tmp_path / "mlp.onnx", kind="mlp", hidden_sizes=[4]).graph
    assert [value.name for value in mlp.input] == ["x"]
    assert [value.name for value in mlp.output] == ["y"]


def test_every_tensor_is_named_after_its_place(tmp_path: Path) -> None:
    graph = exported(tmp_path / "m.onnx", kind="gru", hidden_size=4, num_layers=2).graph
    weights = {initializer.name for initializer in graph.initializer}
    assert {f"layer{n}.{w}" for n in (0, 1) for w in "WRB"} <= weights
    assert {"head.weight", "head.bias"} <= weights
    names = [node.name for node in graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_without_lengths_the_graph_has_no_such_input(tmp_path: Path) -> None:
    graph = exported(tmp_path / "m.onnx", kind="rnn", hidden_size=4, lengths=False).graph
    assert [value.name for value in graph.input] == ["x", "h"]


@pytest.mark.parametrize(
    ("kind", "layers", "nodes"),
    [
        ("lstm", 1, {"Transpose": 2, "LSTM": 1, "Squeeze": 1, "MatMul": 1, "Add": 1}),
        (
            "lstm",
            2,
            {"Transpose": 2, "Split": 2, "LSTM": 2, "Squeeze": 2, "Concat": 2, "MatMul": 1, "Add": 1},
        ),
        ("gru", 3, {"Transpose": 2, "Split": 1, "GRU": 3, "Squeeze": 3, "Concat": 1, "MatMul": 1, "Add": 1}),
    ],
)
def test_a_step_is_few_nodes(kind: str, layers: int, nodes: dict[str, int], tmp_path: Path) -> None:
    exported(
        tmp_path / "m.onnx",
        kind=kind,
        hidden_size=4,
        num_layers=layers,
        input_affine=True,
        output_affine=True,
    )
    assert ops_at_run_time(tmp_path / "m.onnx", ort.GraphOptimizationLevel.ORT_ENABLE_BASIC) == nodes


@pytest.mark.parametrize("after", [False, True])
def test_a_gru_always_says_which_formula_it_is(after: bool, tmp_path: Path) -> None:
    """ONNX Runtime's CUDA provider leaves a GRU to the CPU only if the attribute is there and is 0."""
    graph = exported(tmp_path / "m.onnx", kind="gru", hidden_size=4, reset_after=after).graph
    (gru,) = (node for node in graph.node if node.op_type == "GRU")
    assert {a.name: a.i for a in gru.attribute}["linear_before_reset"] == int(after)


def test_batch_normalisation_and_scalings_are_no_nodes(tmp_path: Path) -> None:
    graph = exported(
        tmp_path / "m.onnx",
        kind="mlp",
        hidden_sizes=[4, 5],
        batch_norm=True,
        input_affine=True,
        output_affine=True,
    ).graph
    assert Counter(node.op_type for node in graph.node) == {"MatMul": 3, "Add": 3, "Relu": 2}


def test_a_constant_may_be_shared_but_not_contradicted() -> None:
    graph = GraphBuilder("g")
    assert graph.axes(1) == graph.axes(1)
    graph.constant("w", np.ones(2, np.float32))
    with pytest.raises(ExportError, match="two different constants were named w"):
        graph.constant("w", np.zeros(2, np.float32))
    with pytest.raises(ExportError, match="two different constants were named w"):
        graph.constant("w", np.ones(2, np.float64))


def test_only_what_a_node_makes_can_be_renamed() -> None:
    graph = GraphBuilder("g")
    x = graph.input("x", "float32", ["batch", 3])
    with pytest.raises(ExportError, match="no node makes x"):
        graph.rename(x, "y")
    graph.rename(graph.node("Relu", [x], "relu"), "y")
    graph.output("y", "float32", ["batch", 3])
    assert graph.build("0").graph.node[0].output == ["y"]


def test_a_graph_whose_shapes_contradict_is_refused() -> None:
    graph = GraphBuilder("g")
    graph.node("Relu", [graph.input("x", "float32", ["batch", 3])], "y")
    graph.output("y", "float32", ["batch", 4])
    with pytest.raises(ExportError, match="checker refuses"):
        graph.build("0")


def test_check_keeps_the_model_as_it_is_but_for_shapes(tmp_path: Path) -> None:
    model = exported(tmp_path / "m.onnx", kind="rnn", hidden_size=4)
    assert check(model).graph.node == model.graph.node
    assert {value.name for value in check(model).graph.value_info} >= {"layer0.y", "layer0.squeeze"}
