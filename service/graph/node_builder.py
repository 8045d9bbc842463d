"""Nodes that are added to a graph, under names that are free in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from .edit import value_names

READ_SLOTS = "streamcell.read_slots"
WRITE_SLOTS = "streamcell.write_slots"


@dataclass
class Nodes:
    """Nodes to be put before (`head`) and behind (`tail`) those of `graph`, under names that are free in it."""

    graph: onnx.GraphProto
    head: list[onnx.NodeProto] = field(default_factory=list)
    tail: list[onnx.NodeProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = value_names(self.graph) | {READ_SLOTS, WRITE_SLOTS}
        self._constants: dict[tuple[int, ...] | bytes, str] = {}

    def name(self, wanted: str) -> str:
        """`wanted`, numbered where it is taken; it is taken from now on."""
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}.{number}"
        self._names.add(name)
        return name

    def add(
        self, where: list[onnx.NodeProto], op: str, inputs: list[str], output: str, **attributes: Any
    ) -> str:
        """Append a node to `where`; its output's name."""
        where.append(helper.make_node(op, inputs, [output], name=f"streamcell/{op}/{output}", **attributes))
        return output

    def constant(self, value: npt.ArrayLike) -> str:
        """The name of an initializer that holds `value` as int64."""
        array = np.asarray(value, dtype=np.int64)
        key = repr(array.shape).encode() + array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.name("streamcell.constant")
            self.graph.initializer.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]
