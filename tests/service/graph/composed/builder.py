"""A graph in the making: its nodes, constants and states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH = 4
# An end of a slice that is behind every axis' own.
ALL = 2**31


@dataclass(frozen=True)
class RandomState:
    """A state as the sidecar has it; `shape` is one session's."""

    name: str
    shape: tuple[int, ...]
    axis: int
    dtype: str
    initial: float

    @property
    def dims(self) -> list[int | str]:
        """With the batch axis in its place."""
        return [*self.shape[: self.axis], "b", *self.shape[self.axis :]]


Keep = Callable[[str], None]


@dataclass
class Builder:
    """Takes nodes, constants and states."""

    rng: np.random.Generator
    layout: str
    opset: int
    lengths: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    states: list[RandomState] = field(default_factory=list)
    count: int = 0

    @property
    def has_time(self) -> bool:
        return self.layout != "batch"

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def add(self, op: str, *inputs: str, into: str = "", **attributes: Any) -> str:
        return self.add_all(op, *inputs, outputs=[into or self.name(op.lower())], **attributes)[0]

    def add_all(self, op: str, *inputs: str, outputs: int | list[str], **attributes: Any) -> list[str]:
        names = outputs if isinstance(outputs, list) else [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=self.name("node"), **attributes))
        return names

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = self.name("constant")
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, 0.5, shape), np.float32)

    def raw_state(
        self, *shape: int, axis: int, dtype: str = "float32", initial: float = 0.0
    ) -> tuple[str, Keep]:
        """A state as the graph takes it, and what gives it its next value."""
        name = self.name("s")
        self.states.append(RandomState(name, shape, axis, dtype, initial))
        return name, lambda value: (self.add("Identity", value, into=f"{name}_next"), None)[1]

    def state(self, *shape: int, dtype: str = "float32", initial: float = 0.0) -> tuple[str, Keep]:
        """The same batch first, wherever the graph has the batch axis."""
        axis, rank = int(self.rng.integers(0, len(shape) + 1)), len(shape)
        name, keep = self.raw_state(*shape, axis=axis, dtype=dtype, initial=initial)
        if axis == 0:
            return name, keep
        later = range(axis + 1, rank + 1)
        first = self.add("Transpose", name, perm=[axis, *range(axis), *later])
        outward = [*range(1, axis + 1), 0, *later]
        return first, lambda value: keep(self.add("Transpose", value, perm=outward))

    def along(self, since: int, op: str, value: str, *axes: int, **attributes: Any) -> str:
        """An operator whose axes are an input since opset `since`, and an attribute before."""
        if self.opset >= since:
            return self.add(op, value, self.constant(axes), **attributes)
        return self.add(op, value, axes=list(axes), **attributes)

    def squeeze(self, value: str, *axes: int) -> str:
        return self.along(13, "Squeeze", value, *axes)

    def unsqueeze(self, value: str, *axes: int) -> str:
        return self.along(13, "Unsqueeze", value, *axes)

    def reduce(self, op: str, value: str, axis: int, *, keepdims: int = 1) -> str:
        return self.along(13 if op == "ReduceSum" else 18, op, value, axis, keepdims=keepdims)

    def cast(self, value: str, dtype: str) -> str:
        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def last(self, value: str) -> str:
        """[batch, …] of [batch, time, …]."""
        return self.squeeze(self.cut(value, -1, ALL, 1), 1)

    def cut(self, value: str, begin: int, end: int, axis: int) -> str:
        return self.add("Slice", value, *(self.constant([place]) for place in (begin, end, axis)))

    def timed(self, value: str) -> str:
        """[batch, time, …], whatever the layout is."""
        return value if self.has_time else self.unsqueeze(value, 1)

    def untimed(self, value: str) -> str:
        return value if self.has_time else self.squeeze(value, 1)

    def time_first(self, value: str) -> str:
        return self.add("Transpose", self.timed(value), perm=[1, 0, 2])

    def steps(self, value: str) -> str:
        """int64[1], the timesteps of a value [batch, time, …]."""
        return self.cut(self.add("Shape", value), 1, 2, 0)

    def like_ones(self, value: str) -> str:
        """float32[batch, time, 1] of ones."""
        shape = self.add("Concat", self.cut(self.add("Shape", value), 0, 2, 0), self.constant([1]), axis=0)
        one = numpy_helper.from_array(np.ones(1, np.float32))
        return self.add("ConstantOfShape", shape, value=one)


Block = Callable[[Builder, str], str]
