"""Follows values through nodes of a graph that move, select or shift them, with its known shapes and constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Ints: TypeAlias = npt.NDArray[np.int64]

MOST_DEPTH = 16
_MOST_CONSTANT = 1024
_INDEX_TYPES = (
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.UINT32,
    onnx.TensorProto.UINT64,
)
_SAME_SHAPE = frozenset({"Identity", "Cast", "DequantizeLinear", "Dropout"})


@dataclass(frozen=True, eq=False)
class Trace:
    """Values that came from one input.

    Attributes:
        elements: how many a step has.
        places: for one row of one timestep, the place of each element of the step; None: no longer known.
        shift: the sum added to each element, int64[elements].
        mixed: True if there are other values among them.
    """

    elements: int
    places: Ints | None
    shift: Ints
    mixed: bool = False

    def moved(self, move: Callable[[Ints], Ints] | None) -> Trace:
        """All of the values at other places; `move` is None if the places are unknown."""
        if self.places is None or move is None:
            return replace(self, places=None)
        try:
            return replace(self, places=move(self.places))
        except (ValueError, IndexError, TypeError):
            return replace(self, places=None)

    def chosen(self, choose: Callable[[Ints], Ints] | None) -> Trace | None:
        """Some of the values; None if it is unknown which."""
        if self.places is not None and choose is not None:
            try:
                return replace(self, places=choose(self.places))
            except (ValueError, IndexError, TypeError):
                return None
        return None if self.elements > 1 or self.mixed else replace(self, places=None)

    def present(self) -> Ints:
        """The elements among the values."""
        return np.arange(self.elements) if self.places is None else np.unique(self.places)


class Scope:
    """The known values of a graph and of the graphs around it: small constants, and shapes."""

    def __init__(self, graph: onnx.GraphProto, outer: Scope | None = None) -> None:
        self._outer = outer
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._declared = {value.name: value.type for value in (*graph.input, *graph.value_info)}

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of a small constant of whole numbers."""
        tensor = self._tensor(name)
        if tensor is None or math.prod(tensor.dims) > _MOST_CONSTANT or tensor.data_type not in _INDEX_TYPES:
            return self._outer.constant(name) if self._outer is not None and not self._has(name) else None
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError):
            return None

    def dims(self, name: str, depth: int = 0) -> tuple[int | None, ...] | None:
        """The shape of a value, None for sizes that are not known."""
        if depth > MOST_DEPTH:
            return None
        if (tensor := self._tensor(name)) is not None:
            return tuple(tensor.dims)
        node = self._makers.get(name)
        if node is not None and node.op_type in _SAME_SHAPE and node.input:
            return self.dims(node.input[0], depth + 1)
        if node is not None and node.op_type == "Transpose":
            dims = self.dims(node.input[0], depth + 1)
            perm = attribute_of(node, "perm") or (range(len(dims))[::-1] if dims else ())
            return None if dims is None or len(perm) != len(dims) else tuple(dims[axis] for axis in perm)
        if name in self._declared:
            shape = self._declared[name].tensor_type.shape
            return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in shape.dim)
        if node is None and self._outer is not None:
            return self._outer.dims(name, depth + 1)
        return None

    def _has(self, name: str) -> bool:
        return name in self._tensors or name in self._makers or name in self._declared

    def _tensor(self, name: str) -> onnx.TensorProto | None:
        if (tensor := self._tensors.get(name)) is not None:
            return tensor
        node = self._makers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        for attribute in node.attribute:
            if attribute.name == "value":
                return attribute.t
            if attribute.name == "value_int":
                return numpy_helper.from_array(np.array(attribute.i, np.int64))
            if attribute.name == "value_ints":
                return numpy_helper.from_array(np.array(attribute.ints, np.int64))
        return None


def through(node: onnx.NodeProto, position: int, trace: Trace, scope: Scope) -> Iterator[tuple[str, Trace]]:
    """The values that the node passes on, by the name of the output."""
    op, output = node.op_type, node.output[0] if node.output else ""
    if op in ("Add", "Sub"):
        if (shifted := _shifted(node, position, trace, scope)) is not None:
            yield output, shifted
    elif op == "Concat":
        yield output, replace(trace.moved(None), mixed=len(node.input) > 1)
    elif position:
        return
    elif op in ("Identity", "Squeeze", "Unsqueeze", "Flatten", "Reshape", "Transpose", "Expand", "Tile"):
        yield output, trace.moved(_mover(node, scope))
    elif op == "Cast":
        if attribute_of(node, "to") in _INDEX_TYPES:
            yield output, trace
    elif op in ("Slice", "Gather", "GatherElements", "GatherND"):
        if (kept := trace.chosen(_chooser(node, scope))) is not None:
            yield output, kept
    elif op == "Split":
        axis, count = attribute_of(node, "axis") or 0, len(node.output)
        for number, name in enumerate(node.output):
            sizes = _numbers(node, "split", 1, scope)

            def part(places: Ints, number: int = number, sizes: list[int] | None = sizes) -> Ints:
                at = np.cumsum(sizes)[:-1].tolist() if sizes else count
                return np.split(places, at, axis)[number]

            if (kept := trace.chosen(part)) is not None:
                yield name, kept


def _shifted(node: onnx.NodeProto, position: int, trace: Trace, scope: Scope) -> Trace | None:
    """The trace behind an Add or a Sub of constants."""
    other = scope.constant(node.input[1 - position]) if len(node.input) == 2 else None
    if other is None or (node.op_type == "Sub" and position == 1) or trace.mixed:
        return None
    by = other.astype(np.int64) * (1 if node.op_type == "Add" else -1)
    shift = trace.shift.copy()
    if by.size == 1:
        shift += by.reshape(-1)[0]
        return replace(trace, shift=shift)
    if trace.places is None:
        return None
    try:
        places, added = np.broadcast_arrays(trace.places, by)
    except ValueError:
        return None
    if places.size != trace.places.size or len(np.unique(places)) != places.size:
        return None  # one element would have several shifts
    shift[places.reshape(-1)] += added.reshape(-1)
    return replace(trace, places=places, shift=shift)


def _mover(node: onnx.NodeProto, scope: Scope) -> Callable[[Ints], Ints] | None:
    op = node.op_type
    if op == "Identity":
        return lambda places: places
    if op == "Transpose":
        perm = attribute_of(node, "perm")
        return lambda places: places.transpose(perm)
    if op == "Flatten":
        axis = attribute_of(node, "axis")
        axis = 1 if axis is None else axis
        return lambda places: places.reshape(math.prod(places.shape[:axis]), -1)
    numbers = _numbers(node, "shape" if op == "Reshape" else "axes", 1, scope)
    if op == "Reshape" and numbers is not None and not attribute_of(node, "allowzero"):
        return lambda places: places.reshape([n or places.shape[i] for i, n in enumerate(numbers)])
    if op == "Unsqueeze" and numbers is not None:
        return lambda places: np.expand_dims(places, tuple(numbers))
    if op == "Squeeze" and numbers is not None:
        return lambda places: np.squeeze(places, tuple(numbers))
    return None


def _chooser(node: onnx.NodeProto, scope: Scope) -> Callable[[Ints], Ints] | None:
    if node.op_type == "Gather":
        indices, axis = scope.constant(node.input[1]), attribute_of(node, "axis") or 0
        return None if indices is None else lambda places: np.take(places, indices, axis)
    if node.op_type == "Slice":
        starts, ends = (_numbers(node, key, at, scope) for key, at in (("starts", 1), ("ends", 2)))
        if starts is None or ends is None:
            return None
        axes = _numbers(node, "axes", 3, scope) or list(range(len(starts)))
        steps = _numbers(node, "steps", 4, scope) or [1] * len(starts)

        def cut(places: Ints) -> Ints:
            cuts = [slice(None)] * places.ndim
            for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
                cuts[axis] = slice(start, None if step < 0 and end < -places.shape[axis] else end, step)
            return places[tuple(cuts)]

        return cut
    return None


def _numbers(node: onnx.NodeProto, key: str, position: int, scope: Scope) -> list[int] | None:
    """A list of numbers that newer opsets take as an input and older ones as an attribute."""
    if len(node.input) > position and node.input[position]:
        value = scope.constant(node.input[position])
        return None if value is None else [int(number) for number in value.reshape(-1)]
    given = attribute_of(node, key)
    return None if given is None else [int(number) for number in given]


def attribute_of(node: onnx.NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
