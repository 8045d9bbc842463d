"""A small ONNX graph under construction: named tensors, initializers, nodes in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .errors import ExportError

# What ONNX Runtime 1.22, the lowest supported, takes without a complaint: opset 20 brought Gelu, opset 22's
# recurrent operators add only bfloat16. Newer runtimes read both.
OPSET = 20
IR_VERSION = 10

Dims = Sequence[str | int]


class GraphBuilder:
    """Collects a graph; every method that makes a tensor returns its name.

    Args:
        name: the graph's name.
        outer: for the body of a control-flow operator, the graph around it, which then holds its constants.
    """

    def __init__(self, name: str, outer: GraphBuilder | None = None) -> None:
        self._name = name
        self._outer = outer
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[Any]] = {}

    def input(self, name: str, dtype: str, dims: Dims) -> str:
        """Declare an input. dtype: numpy's name; dims: an int is fixed, a string is a named dynamic axis."""
        self._inputs.append(_value_info(name, dtype, dims))
        return name

    def output(self, name: str, dtype: str, dims: Dims) -> str:
        """Declare that the tensor `name` is an output."""
        self._outputs.append(_value_info(name, dtype, dims))
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """An initializer. The same name may be asked for again with the same value.

        Raises:
            ExportError: `name` is taken by another value, or a value is not finite.
        """
        if self._outer is not None:
            return self._outer.constant(name, value)
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise ExportError(f"{name} holds values that are not finite")
        held = self._constants.setdefault(name, np.array(value, order="C"))
        if held.dtype != value.dtype or not np.array_equal(held, value):
            raise ExportError(f"two different constants were named {name}")
        return name

    def has(self, tensor: str) -> bool:
        """Whether a node makes `tensor`."""
        return any(tensor in node.output for node in self._nodes)

    def axes(self, *axes: int) -> str:
        """The initializer int64[len(axes)] that operators such as Squeeze take their axes from."""
        return self.constant("axes_" + "_".join(map(str, axes)), np.array(axes, np.int64))

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output; the node is named after it. An empty input name is "not given"."""
        self.nodes(op, inputs, [output], output, **attributes)
        return output

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any
    ) -> Sequence[str]:
        """Append a node with several outputs."""
        self._nodes.append(helper.make_node(op, list(inputs), list(outputs), name, **attributes))
        return outputs

    def rename(self, old: str, new: str) -> str:
        """Give the tensor that a node made as `old` the name `new`, wherever it is used.

        Raises:
            ExportError: no node makes `old`: an input or a constant cannot be renamed.
        """
        if not any(old in node.output for node in self._nodes):
            raise ExportError(f"no node makes {old}, so it cannot be called {new}")
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == old:
                        names[index] = new
            if node.name == old:
                node.name = new
        return new

    def graph(self) -> onnx.GraphProto:
        """The graph, unchecked, for the body of a control-flow operator."""
        return helper.make_graph(
            self._nodes,
            self._name,
            self._inputs,
            self._outputs,
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )

    def build(self, producer_version: str) -> onnx.ModelProto:
        """The model, at the pinned opset and IR version, with the shapes of inner tensors inferred.

        Raises:
            ExportError: ONNX's checker or its shape inference refuses the graph.
        """
        model = helper.make_model(
            self.graph(),
            producer_name="streamcell",
            producer_version=producer_version,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        return check(model)


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with inner shapes inferred.

    Raises:
        ExportError: the checker or strict shape inference refuses it, or it is over protobuf's 2 GiB.
    """
    if model.ByteSize() >= 2**31:
        raise ExportError(f"the model takes {model.ByteSize()} bytes; one .onnx file holds at most 2 GiB")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's checker refuses the graph: {error}") from error
    return inferred


def _value_info(name: str, dtype: str, dims: Dims) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(dims))
