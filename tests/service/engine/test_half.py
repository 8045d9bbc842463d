"""Models whose inputs, outputs and states are float16: in the pool, on the wire, whole and written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from streamcell.benchmarks.parity import compare, engine
from streamcell.client import connect
from streamcell.service.engine.device import Device
from streamcell.service.repository.model_file import open_model

I, H = 4, 8  # noqa: E741


def write(path: Path) -> None:
    """An LSTM in float16 throughout, [batch, time, …], with lengths."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float16), name)
        for name, shape in {"W": (1, 4 * H, I), "R": (1, 4 * H, H), "B": (1, 8 * H)}.items()
    ]
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM", ["xt", "W", "R", "B", "lengths", "h", "c"], ["yt", "h_next", "c_next"], hidden_size=H
        ),
        helper.make_node("Squeeze", ["yt", "one"], ["ys"]),
        helper.make_node("Transpose", ["ys"], ["y"], perm=[1, 0, 2]),
    ]
    half = TensorProto.FLOAT16
    inputs = [
        helper.make_tensor_value_info("x", half, ["batch", "time", I]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
        *(helper.make_tensor_value_info(s, half, [1, "batch", H]) for s in ("h", "c")),
    ]
    outputs = [
        helper.make_tensor_value_info("y", half, ["batch", "time", H]),
        *(helper.make_tensor_value_info(f"{s}_next", half, [1, "batch", H]) for s in ("h", "c")),
    ]
    graph = helper.make_graph(nodes, "half", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    path.with_suffix(".toml").write_text(
        'layout = "batch_time"\ninputs = ["x"]\noutputs = ["y"]\nlengths = "lengths"\n'
        'states = [{ input = "h", output = "h_next" }, { input = "c", output = "c_next" }]\n'
    )


def alone(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One sequence [time, input] by ONNX Runtime, whole."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    zeros = np.zeros((1, 1, H), np.float16)
    feed = {"x": x[None], "lengths": np.array([len(x)], np.int32), "h": zeros, "c": zeros}
    y: np.ndarray[Any, Any] = session.run(["y"], feed)[0][0]
    return y


@pytest.mark.parametrize("cell", ["operator", "decomposed"])
def test_a_float16_model_is_served_to_its_precision(start_server: Any, tmp_path: Path, cell: str) -> None:
    write(tmp_path / "half.onnx")
    server = start_server(tmp_path, "--cell", cell)
    x = np.random.default_rng(1).normal(size=(9, I)).astype(np.float16)
    with connect(server.target) as client, client.session("half") as session:
        rows = [session.step(x[0]), *session.run(x[1:6]), *(session.step(row) for row in x[6:])]
    assert rows[0].dtype == np.float16
    np.testing.assert_allclose(np.stack(rows), alone(tmp_path / "half.onnx", x), atol=2e-3)


@pytest.mark.parametrize("cell", ["operator", "decomposed"])
def test_a_float16_pool_takes_two_bytes_an_element_on_every_device(tmp_path: Path, cell: Any) -> None:
    write(tmp_path / "half.onnx")
    file = open_model(tmp_path / "half.onnx", "half")
    one, other = engine(file, Device()), engine(file, Device(apart=True), cell=cell, cuda_graphs=True)
    assert one.pool.slot_bytes == other.pool.slot_bytes == 2 * 2 * H
    found = compare(one, other)
    assert found.output_error < 2e-3
    assert found.state_error < 2e-3
