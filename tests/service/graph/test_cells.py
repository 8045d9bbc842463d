"""Recurrent operators written out for one timestep: equal to the operators and to PyTorch, or left alone."""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from streamcell.benchmarks.parity import engine
from streamcell.card import Signature, State, Tensor
from streamcell.export import export_model
from streamcell.models import build
from streamcell.service.engine.device import Device
from streamcell.service.graph.pooled import Pooled, pool_states
from streamcell.service.graph.single_step import single_step
from streamcell.service.repository.model_file import open_model

B, I, H = 5, 3, 7  # noqa: E741
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
RECURRENT = {"LSTM", "GRU", "RNN"}


def layer(op: str, number: int, into: int, *, bias: bool, peephole: bool = False, **attributes: Any) -> Any:
    """One operator's node and weights, as `layerN`, from x or the layer before."""
    rng = np.random.default_rng(number)
    shapes = {"W": (1, GATES[op] * H, into), "R": (1, GATES[op] * H, H)}
    shapes |= {"B": (1, 2 * GATES[op] * H)} if bias else {}
    shapes |= {"P": (1, 3 * H)} if peephole else {}
    weights = {
        key: numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), f"{key}{number}")
        for key, shape in shapes.items()
    }
    states = ["h", "c"] if op == "LSTM" else ["h"]
    names = {key: value.name for key, value in weights.items()}
    inputs = [f"in{number}", names["W"], names["R"], names.get("B", ""), "lengths"]
    inputs += [f"{s}{number}" for s in states] + ([names["P"]] if peephole else [])
    outputs = [f"y{number}", *(f"{s}{number}_next" for s in states)]
    node = helper.make_node(op, inputs, outputs, name=f"layer{number}", hidden_size=H, **attributes)
    return node, list(weights.values())


def model(
    op: str, *, layers: int = 1, opset: int = 20, dtype: str = "float32", bias: bool = True, **more: Any
) -> tuple[onnx.ModelProto, Signature]:
    """A model on [time, batch, …] of `layers` operators in a row, with `lengths` and all states."""
    nodes, weights, states = [helper.make_node("Identity", ["x"], ["in0"])], [], []
    for number in range(layers):
        node, held = layer(op, number, H if number else I, bias=bias, **more)
        nodes.append(node)
        weights += held
        axes = {"axes": [1]} if opset < 13 else {}
        squeeze = [f"y{number}"] if opset < 13 else [f"y{number}", "one"]
        nodes.append(helper.make_node("Squeeze", squeeze, [f"in{number + 1}"], **axes))
        states += [
            State(
                input=f"{s}{number}", output=f"{s}{number}_next", dtype="float32", shape=(1, H), batch_axis=1
            )
            for s in (("h", "c") if op == "LSTM" else ("h",))
        ]
    nodes.append(helper.make_node("Identity", [f"in{layers}"], ["y"]))
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    interface = {"x": ["time", "batch", I], **{s.input: [1, "batch", H] for s in states}}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in interface.items()]
    inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]))
    out = {"y": ["time", "batch", H], **{s.output: [1, "batch", H] for s in states}}
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in out.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    signature = Signature(
        inputs=(Tensor(name="x", dtype="float32", step_shape=(I,)),),
        outputs=(Tensor(name="y", dtype="float32", step_shape=(H,)),),
        states=tuple(states),
        layout="time_batch",
        lengths="lengths",
    )
    return made, signature


def run(pooled: Pooled, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """A few single steps over full pools of random states; the outputs and the pools at the end."""
    onnx.checker.check_model(pooled.model, full_check=True)
    session = ort.InferenceSession(pooled.model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = {
        **{p.input: rng.normal(size=(B, *p.shape)).astype(np.float32) for p in pooled.pools},
        "lengths": np.ones(B, np.int32),
        "streamcell.read_slots": np.arange(B),
        "streamcell.write_slots": np.arange(B)[:, None],
    }
    outputs = []
    for step in x:
        y, *pools = session.run(None, {"x": step[:, None], **feeds})
        feeds |= {p.input: value for p, value in zip(pooled.pools, pools, strict=True)}
        outputs.append(y)
    return [*outputs, *(feeds[p.input] for p in pooled.pools)]


def ops(pooled: Pooled) -> list[str]:
    return [node.op_type for node in pooled.model.graph.node]


ACTIVATIONS: dict[str, list[dict[str, Any]]] = {
    "LSTM": [
        {},
        {"activations": ["Sigmoid", "Relu", "Tanh"]},
        {"activations": ["Sigmoid", "Softsign", "Relu"]},
    ],
    "GRU": [{}, {"activations": ["Softsign", "Relu"]}],
    "RNN": [{}, {"activations": ["Relu"]}, {"activations": ["Sigmoid"]}, {"activations": ["Softplus"]}],
}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "LSTM": [{}, {"peephole": True}],
    "GRU": [{"linear_before_reset": 0}, {"linear_before_reset": 1}],
    "RNN": [{}],
}
EQUAL = [
    pytest.param(op, {**activations, **variant, "bias": bias, "layers": layers}, id=f"{op}-{number}")
    for op in GATES
    for number, (activations, variant, bias, layers) in enumerate(
        product(ACTIVATIONS[op], VARIANTS[op], (True, False), (1, 3))
    )
]


@pytest.mark.parametrize(("op", "more"), EQUAL)
def test_written_out_it_computes_what_the_operator_computes(op: str, more: dict[str, Any]) -> None:
    made, signature = model(op, **more)
    pooled = pool_states(made, signature)
    written_out = single_step(pooled, "lengths")
    assert written_out is not None
    assert not RECURRENT & set(ops(written_out))
    x = np.random.default_rng(3).normal(size=(4, B, I)).astype(np.float32)
    for a, b in zip(run(pooled, x), run(written_out, x), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("opset", [11, 13, 17, 18, 22])
def test_in_every_opset(op: str, opset: int) -> None:
    made, signature = model(op, opset=opset)
    pooled = pool_states(made, signature)
    written_out = single_step(pooled, "lengths")
    assert written_out is not None
    x = np.random.default_rng(3).normal(size=(3, B, I)).astype(np.float32)
    for a, b in zip(run(pooled, x), run(written_out, x), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)


LEFT_ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("LSTM", {"clip": 1.0}),
    "input and forget gate as one": ("LSTM", {"input_forget": 1}),
    "an activation with parameters": ("RNN", {"activations": ["HardSigmoid"]}),
    "parameters": ("RNN", {"activations": ["Tanh"], "activation_alpha": [0.5]}),
    "backwards": ("GRU", {"direction": "reverse"}),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_cannot_be_written_out_is_left_alone(case: str) -> None:
    op, more = LEFT_ALONE[case]
    made, signature = model(op, **more)
    assert single_step(pool_states(made, signature), "lengths") is None


def test_a_layer_costs_a_card_one_product_and_one_activation_of_all_gates() -> None:
    made, signature = model("LSTM", layers=2)
    written_out = single_step(pool_states(made, signature, few_kernels=True), "lengths")
    assert written_out is not None
    options = ort.SessionOptions()
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        ort.InferenceSession(written_out.model.SerializeToString(), options)
        run_there = Counter(node.op_type for node in onnx.load(f"{folder}/optimised.onnx").graph.node)
    a_layer = {"Gemm": 1, "Sigmoid": 1, "Tanh": 2, "Mul": 3, "Split": 2}
    assert {op: run_there[op] for op in a_layer} == {op: 2 * count for op, count in a_layer.items()}
    assert run_there["Concat"] <= 2 + len(signature.states), (
        "weights are joined once, when the graph is loaded"
    )
    assert not run_there["ScatterElements"]


def test_one_operator_that_stays_does_not_keep_the_others() -> None:
    made, signature = model("LSTM", layers=2)
    made.graph.node[3].attribute.append(helper.make_attribute("clip", 1.0))
    pooled = pool_states(made, signature)
    written_out = single_step(pooled, "lengths")
    assert written_out is not None
    assert ops(written_out).count("LSTM") == 1
    x = np.random.default_rng(3).normal(size=(3, B, I)).astype(np.float32)
    for a, b in zip(run(pooled, x), run(written_out, x), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)


def test_an_operator_with_its_own_lengths_or_its_own_time_is_left_alone() -> None:
    made, signature = model("GRU")
    made.graph.node[1].input[4] = "others"
    made.graph.initializer.append(numpy_helper.from_array(np.zeros(B, np.int32), "others"))
    assert single_step(pool_states(made, signature), "lengths") is None
    made, signature = model("GRU")
    made.graph.node[0].op_type = "Concat"  # two timesteps of the layer for one of the model
    made.graph.node[0].input.append("x")
    made.graph.node[0].attribute.append(helper.make_attribute("axis", 0))
    assert single_step(pool_states(made, signature), "lengths") is None


def test_a_bidirectional_operator_is_left_alone() -> None:
    made, signature = model("RNN")
    made.graph.node[1].attribute.append(helper.make_attribute("direction", "bidirectional"))
    for weight in made.graph.initializer:
        if weight.dims and weight.dims[0] == 1 and len(weight.dims) > 1:
            twice = np.concatenate([numpy_helper.to_array(weight)] * 2)
            weight.CopyFrom(numpy_helper.from_array(twice, weight.name))
    states = tuple(state.model_copy(update={"shape": (2, H)}) for state in signature.states)
    for value in (*made.graph.input, *made.graph.output):
        if value.name.startswith("h0"):
            value.type.tensor_type.shape.dim[0].dim_value = 2
    made.graph.node[2].op_type = "ReduceMean"
    made.graph.node[2].attribute.append(helper.make_attribute("keepdims", 0))
    described = signature.model_copy(update={"states": states})
    assert single_step(pool_states(made, described), "lengths") is None


CONFIG: dict[str, Any] = {"input_size": I, "hidden_size": H, "output_size": 2, "num_layers": 2}


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {"kind": "lstm", **CONFIG},
        {"kind": "gru", **CONFIG, "reset_after": True},
        {"kind": "gru", **CONFIG, "reset_after": False},
        {"kind": "rnn", **CONFIG, "nonlinearity": "relu"},
    ],
    ids=["lstm", "gru", "gru reset before", "rnn"],
)
def test_single_steps_and_chunks_in_turn_give_what_pytorch_gives(
    config: dict[str, Any], fixed: bool, tmp_path: Path
) -> None:
    torch.manual_seed(6)
    module = build(config).eval()
    export_model(module, tmp_path / "m.onnx", name="m")
    on = engine(open_model(tmp_path / "m.onnx", "m"), Device(apart=fixed), cell="decomposed")
    x = np.random.default_rng(2).normal(size=(B, 12, I)).astype(np.float32)
    slots = on.pool.first_slot + np.arange(B)
    outputs = []
    for begin, end in ((0, 1), (1, 4), (4, 5), (5, 6), (6, 12)):
        staged = on.stage(B, end - begin)
        staged.values[0][:B, : end - begin] = x[:, begin:end]
        staged.read[:B], staged.write[:B, 0], staged.lengths[:B] = slots if begin else 0, slots, end - begin
        on.pad(staged, B)
        on.run(staged)
        outputs.append(staged.values[1][:B, : end - begin].copy())
    with torch.no_grad():
        y = module(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(np.concatenate(outputs, 1), y, rtol=1e-5, atol=1e-6)
