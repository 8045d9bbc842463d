"""Nodes that are added to a graph, and their constants, under names that are free in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from .edit import value_names

# The opsets from which Squeeze, Unsqueeze and Split take axes and sizes as an input, and from which Split is told how
# many parts it makes.
_AXES_INPUT, _SPLIT_COUNTS = 13, 18


class NodeBuilder:
    """Collects nodes in `nodes`; constants are added to the graph at once. Methods that make a value return its name.

    Attributes:
        graph: the graph that the nodes are for.
        nodes: those made so far, in order.
    """

    def __init__(
        self, model: onnx.ModelProto, prefix: str = "streamcell", reserved: Iterable[str] = ()
    ) -> None:
        """Begin with no nodes.

        Args:
            model: whose graph the nodes are for; its opset decides how they are written.
            prefix: what names begin with if nothing else is wanted.
            reserved: names that are not free although the graph does not use them yet.
        """
        self.graph = model.graph
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix
        self._opset = next(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), _SPLIT_COUNTS
        )
        self._taken = value_names(model.graph) | set(reserved)
        self._numbers: dict[str, int] = {}
        self._constants: dict[bytes, str] = {}

    def beside(self, prefix: str | None = None) -> NodeBuilder:
        """Another list of nodes for the same graph, with the same names and constants."""
        other = NodeBuilder.__new__(NodeBuilder)
        other.__dict__.update(self.__dict__)
        other.nodes = []
        other._prefix = prefix or self._prefix
        return other

    def name(self, wanted: str) -> str:
        """`wanted`, numbered if it is taken; it is taken from now on."""
        name = wanted
        while name in self._taken:
            number = self._numbers[wanted] = self._numbers.get(wanted, 1) + 1
            name = f"{wanted}.{number}"
        self._taken.add(name)
        return name

    def add(self, op: str, *inputs: str, into: str | None = None, **attributes: Any) -> str:
        """A node with one output, called `into` or by a new name."""
        output = self.name(f"{self._prefix}.{op}") if into is None else into
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], name=f"streamcell/{op}/{output}", **attributes)
        )
        return output

    def constant(self, value: npt.ArrayLike) -> str:
        """An initializer that holds `value` as int64."""
        array = np.asarray(value, dtype=np.int64)
        key = repr(array.shape).encode() + array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.name("streamcell.constant")
            self.graph.initializer.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def scalar(self, value: int) -> str:
        """An initializer that holds `value` as an int64 without axes."""
        return self.constant(np.array(value))

    def reshape(self, value: str, *shape: int, into: str | None = None) -> str:
        """`value` in another shape; -1 is the remaining size."""
        return self.add("Reshape", value, self.constant(shape), into=into)

    def squeeze(self, value: str, axis: int, into: str | None = None) -> str:
        """`value` without `axis`, whose size is 1."""
        return self._axes("Squeeze", value, axis, into)

    def unsqueeze(self, value: str, axis: int, into: str | None = None) -> str:
        """`value` with a new `axis` of size 1."""
        return self._axes("Unsqueeze", value, axis, into)

    def _axes(self, op: str, value: str, axis: int, into: str | None) -> str:
        if self._opset < _AXES_INPUT:
            return self.add(op, value, into=into, axes=[axis])
        return self.add(op, value, self.constant([axis]), into=into)

    def split(self, value: str, parts: int | Sequence[int], axis: int) -> list[str]:
        """Parts of `value` along `axis`: a number of equal parts, or one of each size."""
        if isinstance(parts, int):
            names = [self.name(f"{self._prefix}.part") for _ in range(parts)]
            counts: dict[str, Any] = {"num_outputs": parts} if self._opset >= _SPLIT_COUNTS else {}
            inputs = [value]
        else:
            names = [self.name(f"{self._prefix}.part") for _ in parts]
            as_input = self._opset >= _AXES_INPUT
            counts = {} if as_input else {"split": list(parts)}
            inputs = [value, self.constant(parts)] if as_input else [value]
        name = f"streamcell/Split/{names[0]}"
        self.nodes.append(helper.make_node("Split", inputs, names, name=name, axis=axis, **counts))
        return names

    def gemm(self, x: str, weight: str, bias: str = "") -> str:
        """x · weightᵀ + bias; "" for no bias."""
        return self.add("Gemm", x, weight, *([bias] if bias else []), transB=1)
