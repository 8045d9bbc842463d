"""Small models that lie, hang or swell, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper


@pytest.fixture(scope="session")
def endless() -> Callable[..., onnx.ModelProto]:
    """A model whose run never ends while `x` holds a number above `above`: h' = h + x, y = h', in a Loop."""

    def make(above: float = 100.0, dims: Sequence[int | str] = ("n", 1)) -> onnx.ModelProto:
        floats = onnx.TensorProto.FLOAT
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["going"], ["goes_on"]),
                helper.make_node("Add", ["turned", "h"], ["turned_next"]),
            ],
            "turn",
            [
                helper.make_tensor_value_info("turn", onnx.TensorProto.INT64, []),
                helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info("turned", floats, None),
            ],
            [
                helper.make_tensor_value_info("goes_on", onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info("turned_next", floats, None),
            ],
        )
        graph = helper.make_graph(
            [
                helper.make_node("Add", ["x", "h"], ["h_next"]),
                helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
                helper.make_node("Greater", ["most", "above"], ["bad"]),
                helper.make_node("Loop", ["", "bad", "h_next"], ["y"], body=body),
            ],
            "endless",
            [helper.make_tensor_value_info(name, floats, dims) for name in ("x", "h")],
            [helper.make_tensor_value_info(name, floats, dims) for name in ("y", "h_next")],
            [numpy_helper.from_array(np.array(above, np.float32), "above")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    return make
