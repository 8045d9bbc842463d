"""Graphs that multiply in int8: exact for a row whatever its company, near float32, or left as they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from streamcell.card.graphs.int8_form import int8_form
from streamcell.card.graphs.int8_weights import Stored, stored_weights, widening
from streamcell.export.emit import emit_model
from streamcell.export.precision import store
from streamcell.models import build

# In sizes that fill no block, one block, and one and a part.
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {"hidden_size": 45, "num_layers": 2},
    "lstm-relu": {"kind": "lstm", "hidden_size": 33, "candidate": "relu"},
    "gru": {"hidden_size": 31, "num_layers": 2},
    "gru-textbook": {"kind": "gru", "hidden_size": 40, "reset_after": False},
    "rnn": {"hidden_size": 64},
    "rnn-large": {"kind": "rnn", "hidden_size": 600},
    "rnn-relu": {"kind": "rnn", "hidden_size": 7, "nonlinearity": "relu", "layer_norm": True},
    "mlp": {"hidden_sizes": [70, 520, 33]},
}
STEPS, ROWS, OUTPUTS = 5, 9, 6


def model(kind: str, inputs: int = 35) -> tuple[onnx.ModelProto, Any]:
    torch.manual_seed(5)
    config = {"kind": kind, "input_size": inputs, "output_size": OUTPUTS, **KINDS[kind]}
    graph, signature = emit_model(build(config).eval(), name="m", version="0", fold=False)
    return store(graph, "int8"), signature


def session(graph: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Ways:
    """Runs a graph; states begin at random."""

    def __init__(self, graph: onnx.ModelProto, signature: Any, inputs: int, *, loud: bool = True) -> None:
        self.session, self.signature = session(graph), signature
        rng = np.random.default_rng(3)
        # Rows of very different size: a scale that they shared would show.
        size = 10.0 ** rng.integers(-3, 3, (ROWS, 1, 1)) if loud else 1.0
        self.x = (rng.standard_normal((ROWS, STEPS, inputs)) * size).astype(np.float32)
        self.states = [
            np.tanh(rng.standard_normal((*s.shape[: s.batch_axis], ROWS, *s.shape[s.batch_axis :]))).astype(
                np.float32
            )
            for s in signature.states
        ]

    def run(
        self, rows: list[int], lengths: list[int] | None = None, parts: list[int] | None = None
    ) -> list[np.ndarray]:
        """y [rows, time, ...] and the last states of these rows, the timesteps cut into `parts`."""
        states = [
            s.take(rows, axis=d.batch_axis) for s, d in zip(self.states, self.signature.states, strict=True)
        ]
        begin, made = 0, []
        for part in parts or [STEPS]:
            feed = {"x": self.x[rows, begin : begin + part]}
            feed |= {d.input: s for s, d in zip(states, self.signature.states, strict=True)}
            if self.signature.lengths:
                feed["lengths"] = np.array(lengths or [part] * len(rows), np.int32)
            y, *states = self.session.run(None, feed)
            made.append(y)
            begin += part
        return [np.concatenate(made, 1), *states]


def rows_of(signature: Any, values: list[np.ndarray], row: int) -> list[np.ndarray]:
    y, *states = values
    return [y[row], *(s.take(row, axis=d.batch_axis) for s, d in zip(states, signature.states, strict=True))]


def assert_same(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("inputs", [1, 32, 35])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_to_the_bit_in_any_company_and_in_any_chunks(kind: str, inputs: int) -> None:
    graph, signature = model(kind, inputs)
    form = int8_form(graph, signature.lengths)
    assert form is not None
    ways = Ways(form, signature, inputs)
    together = ways.run(list(range(ROWS)))
    in_steps = ways.run(list(range(ROWS)), parts=[2, 1, 2])
    for row in range(ROWS):
        alone = rows_of(signature, ways.run([row], parts=[1] * STEPS), 0)
        assert_same(alone, rows_of(signature, together, row))
        assert_same(alone, rows_of(signature, in_steps, row))
    pair = ways.run([7, 2])
    assert_same(rows_of(signature, pair, 1), rows_of(signature, together, 2))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mlp"])
def test_rows_of_different_lengths_stop_where_they_end(kind: str) -> None:
    graph, signature = model(kind)
    form = int8_form(graph, signature.lengths)
    assert form is not None
    ways = Ways(form, signature, 35)
    lengths = [STEPS, 1, 2, *[3] * (ROWS - 3)]
    ragged = ways.run(list(range(ROWS)), lengths)
    for row, length in enumerate(lengths):
        y, *states = rows_of(signature, ragged, row)
        alone = rows_of(signature, ways.run([row], parts=[length]), 0)
        assert_same([y[:length], *states], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_as_near_to_float32_as_its_activations_are(kind: str) -> None:
    """Against the same weights in float32: what differs is that activations have 8 bits."""
    graph, signature = model(kind)
    form = int8_form(graph, signature.lengths)
    assert form is not None
    every = list(range(ROWS))
    in_float32, in_int8 = (Ways(each, signature, 35, loud=False).run(every) for each in (graph, form))
    for a, b in zip(in_float32, in_int8, strict=True):
        error = np.abs(a - b).max() / max(1, np.abs(a).max())
        assert 0 < error < 0.03


def test_products_are_in_int8_and_nothing_reads_the_wide_weights() -> None:
    graph, signature = model("lstm")
    form = int8_form(graph, signature.lengths)
    assert form is not None
    ops = Counter(node.op_type for node in form.graph.node)
    # The products of h are in the bodies.
    assert (ops["Scan"], ops["MatMulNBits"]) == (2, 3)
    assert not ops.keys() & {"LSTM", "MatMul", "Gemm"}
    assert not stored_weights(form.graph)
    assert max(i.data_type == TensorProto.FLOAT and len(i.raw_data) for i in form.graph.initializer) < 8192
    onnx.checker.check_model(form)


def test_one_timestep_has_no_scan() -> None:
    graph, signature = model("gru")
    for value in (*graph.graph.input, *graph.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "time":
                dim.dim_value = 1
    del graph.graph.value_info[:]
    form = int8_form(graph, signature.lengths)
    assert form is not None
    assert not {node.op_type for node in form.graph.node} & {"Scan", "GRU", "Where"}


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (4, 32), (5, 33), (2, 100), (1, 6, 40), (3, 700)])
@pytest.mark.parametrize("axis", [-1, -2])
def test_what_is_stored_is_found_again(shape: tuple[int, ...], axis: int) -> None:
    value = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    value[..., 0] = 0
    weight = Stored.of(value, axis)
    assert weight.steps.shape == shape
    assert np.abs(weight.steps).max() <= 127
    assert weight.block == (64 if shape[axis] >= 512 else 32)
    assert weight.scales.shape[axis] == -(-shape[axis] // weight.block)
    tensors, nodes = widening("w", weight)
    y = helper.make_tensor_value_info("w", TensorProto.FLOAT, shape)
    made = helper.make_model(
        helper.make_graph(nodes, "g", [], [y], tensors),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    found = stored_weights(made.graph)["w"]
    np.testing.assert_array_equal(found.steps, weight.steps)
    np.testing.assert_array_equal(found.scales, weight.scales)
    assert (found.axis, found.block) == (weight.axis, weight.block)
    (wide,) = session(made).run(None, {})
    spread = np.repeat(weight.scales, weight.block, axis=axis).take(range(shape[axis]), axis=axis)
    np.testing.assert_array_equal(wide, weight.steps * spread)
    assert (np.abs(wide - value) <= spread * 0.501).all()


def gemm(
    name: str = "Gemm", rows: int = 40, blocks: np.ndarray | None = None, **attributes: Any
) -> onnx.ModelProto:
    value = np.random.default_rng(2).standard_normal((8, rows)).astype(np.float32)
    tensors, nodes = widening("w", Stored.of(value, 1))
    if blocks is not None:
        tensors[2].CopyFrom(numpy_helper.from_array(blocks, tensors[2].name))
    nodes.append(helper.make_node(name, ["x", "w", "c"], ["y"], **attributes))
    tensors.append(numpy_helper.from_array(np.ones(8, np.float32), "c"))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, [None, rows])],
        [info("y", TensorProto.FLOAT, [None, 8])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_gemm_with_an_addend() -> None:
    graph = gemm(transB=1)
    form = int8_form(graph, None)
    assert form is not None
    x = np.random.default_rng(4).standard_normal((3, 40)).astype(np.float32)
    wanted, got = (session(each).run(None, {"x": x})[0] for each in (graph, form))
    np.testing.assert_allclose(got, wanted, atol=0.1)


@pytest.mark.parametrize(
    "graph",
    [
        gemm(transB=1, alpha=2.0),
        gemm(transB=1, beta=0.5),
        gemm(transB=1, blocks=np.zeros(40, np.int64)),
        gemm(transB=0, rows=8),
        helper.make_model(helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [], [])),
    ],
    ids=["alpha", "beta", "other blocks", "added over outputs", "float32"],
)  # fmt: skip
def test_what_the_kernel_does_not_compute_is_left_alone(graph: onnx.ModelProto) -> None:
    assert int8_form(graph, None) is None


@pytest.mark.parametrize(
    "wrong", [np.full((8, 2), np.nan), np.ones((8, 1)), np.ones((8, 3)), np.ones((2, 8))]
)
def test_scales_that_do_not_fit_are_left_to_the_runtime(wrong: np.ndarray) -> None:
    graph = gemm(transB=1)
    graph.graph.initializer[1].CopyFrom(numpy_helper.from_array(wrong.astype(np.float32), "w.scale"))
    assert int8_form(graph, None) is None


def test_weights_that_are_all_zero_and_rows_that_are_give_zero() -> None:
    weight = Stored.of(np.zeros((8, 40), np.float32), 1)
    assert (weight.scales == 1).all()
    form = int8_form(gemm(transB=1), None)
    assert form is not None
    np.testing.assert_array_equal(session(form).run(None, {"x": np.zeros((3, 40), np.float32)})[0], 1)
    assert session(form).run(None, {"x": np.zeros((0, 40), np.float32)})[0].shape == (0, 8)


def test_a_value_that_is_not_finite_stays_in_its_row() -> None:
    graph, signature = model("lstm")
    form = int8_form(graph, signature.lengths)
    assert form is not None
    ways = Ways(form, signature, 35)
    alone = rows_of(signature, ways.run([4]), 0)
    for bad in (np.nan, np.inf, 1e-42):
        ways.x[3, 2] = bad
        assert_same(alone, rows_of(signature, ways.run([3, 4, 3]), 1))
