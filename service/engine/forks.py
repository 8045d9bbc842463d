"""Copies sessions' states from row to row of the pool, on the device, without a step of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from streamcell.service.graph.pooled import PoolTensor
from streamcell.service.sessions.capacity import Ints

from .device import Device
from .pool import StatePool

_FROM, _TO = "from", "to"
_OPSET, _IR_VERSION = 17, 8


class Forks:
    """Forks states of one pool. For the thread that runs the engine, between two runs."""

    def __init__(self, tensors: tuple[PoolTensor, ...], pool: StatePool, device: Device) -> None:
        """`tensors` are those of `pool`, one or more."""
        self._pool = pool
        self._session = device.session(_graph(tensors).SerializeToString(), intra_op_threads=1)

    def copy(self, parents: Ints, children: Ints) -> None:
        """Give each child its parent's state: int64[n] rows each, the children distinct.

        All parents are read before any child is written.
        """
        if len(np.unique(children)) != len(children):
            raise ValueError(f"children must be distinct, got {children.tolist()}")
        binding = self._session.io_binding()
        binding.bind_cpu_input(_FROM, np.ascontiguousarray(parents, np.int64))
        binding.bind_cpu_input(_TO, np.ascontiguousarray(children, np.int64).reshape(-1, 1))
        self._pool.bind(binding)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()


def _graph(tensors: tuple[PoolTensor, ...]) -> ModelProto:
    """Gather, then scatter, for each state; the second takes what the first gives, so the order is fixed."""
    nodes, inputs, outputs = [], [], []
    for number, tensor in enumerate(tensors):
        rows = f"rows.{number}"
        nodes.append(helper.make_node("Gather", [tensor.input, _FROM], [rows], axis=0))
        nodes.append(helper.make_node("ScatterND", [tensor.input, _TO, rows], [tensor.output]))
        inputs.append(_value(tensor.input, tensor))
        outputs.append(_value(tensor.output, tensor))
    slots = [
        helper.make_tensor_value_info(_FROM, TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info(_TO, TensorProto.INT64, ["n", 1]),
    ]
    graph = helper.make_graph(nodes, "forks", [*slots, *inputs], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _value(name: str, tensor: PoolTensor) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    return helper.make_tensor_value_info(name, kind, ["rows", *tensor.shape])
