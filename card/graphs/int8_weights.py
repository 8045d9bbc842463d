"""Weights in int8: how a file stores them, and how the server finds them again.

The weights of a block that one output adds up share a float32 scale: w = q·scale, q a whole number from −127 to 127,
symmetric, rounded to nearest. A file has `q` in the weight's own shape, the scales, and the nodes that widen them:

    wide = Cast(q) · Gather(scales, blocks, axis)        blocks = 0, 0, …, 1, 1, …

Any runtime computes these once, as it loads the file, and has a float32 weight. A weight with one scale for each
output, whatever it adds up, has no Gather.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

# Sizes of a block: 32, and from this many weights of an output on 64, with which a product takes 0.6 of the time for
# one row and 0.9 for 64, and errs by 0.9 % of the largest output in place of 0.8. ONNX Runtime's kernel takes
# activations to int8 in blocks of the same size. Blocks of 128 are faster still, but not exact: the kernel (1.32,
# AVX-512) gives a row alone other bits than a pair of rows.
SIZES = (32, 64)
_MANY = 512
_MOST = 127

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight in int8.

    Attributes:
        steps: int8, in the weight's shape.
        scales: float32, in the same shape but for `axis`, which counts blocks.
        axis: the one that products add up.
        block: the size of a block.
    """

    steps: Array
    scales: Array
    axis: int
    block: int

    @classmethod
    def of(cls, value: Array, axis: int) -> Stored:
        """`value`, float32 of any shape, in blocks along `axis`."""
        axis %= value.ndim
        moved = np.moveaxis(value, axis, -1)
        size = moved.shape[-1]
        block = SIZES[size >= _MANY]
        blocks = -(-size // block)
        padded = np.zeros((*moved.shape[:-1], blocks * block), np.float32)
        padded[..., :size] = moved
        cut = padded.reshape(*moved.shape[:-1], blocks, block)
        scales = scales_for(np.abs(cut).max(axis=-1))
        steps = rounded(cut, scales[..., None]).reshape(padded.shape)[..., :size]
        return cls(
            np.ascontiguousarray(np.moveaxis(steps, -1, axis)),
            np.ascontiguousarray(np.moveaxis(scales, -1, axis)),
            axis,
            block,
        )

    def rows(self) -> tuple[Array, Array]:
        """Of a matrix: int8[outputs, inputs] and float32[outputs, blocks]."""
        turn = self.axis % 2 == 0
        return (self.steps.T, self.scales.T) if turn else (self.steps, self.scales)

    def first(self) -> Stored:
        """The only matrix of a weight [1, outputs, inputs]."""
        return Stored(self.steps[0], self.scales[0], self.axis - 1, self.block)

    def cut(self, begin: int, end: int) -> Stored:
        """Some outputs of a matrix [outputs, inputs]."""
        return Stored(self.steps[begin:end], self.scales[begin:end], self.axis, self.block)


def scales_for(largest: Array) -> Array:
    """The scale under which `largest`, the largest of some weights by amount, is 127; 1 if they are all 0."""
    return np.where(largest > 0, largest / _MOST, 1).astype(np.float32)


def rounded(value: Array, scales: Array) -> npt.NDArray[np.int8]:
    """`value` in int8, under `scales` of a shape that fits it."""
    return np.clip(np.rint(value / scales), -_MOST, _MOST).astype(np.int8)


def widening(name: str, weight: Stored) -> tuple[list[TensorProto], list[onnx.NodeProto]]:
    """The initializers and nodes that give the float32 weight `name`."""
    blocks = np.arange(weight.steps.shape[weight.axis], dtype=np.int64) // weight.block
    tensors = [
        numpy_helper.from_array(weight.steps, f"{name}.int8"),
        numpy_helper.from_array(weight.scales, f"{name}.scale"),
        numpy_helper.from_array(blocks, f"{name}.blocks"),
    ]
    steps, spread = f"{name}.steps", f"{name}.scales"
    nodes = [
        helper.make_node("Cast", [tensors[0].name], [steps], steps, to=TensorProto.FLOAT),
        helper.make_node("Gather", [tensors[1].name, tensors[2].name], [spread], spread, axis=weight.axis),
        helper.make_node("Mul", [steps, spread], [name], f"{name}.widen"),
    ]
    return tensors, nodes


def stored_weights(graph: onnx.GraphProto) -> dict[str, Stored]:
    """Name of each float32 weight that `graph` widens from int8 in blocks → what it is widened from."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node if node.output}
    found = {}
    for name, node in made.items():
        if node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
            continue
        cast, gather = made.get(node.input[0]), made.get(node.input[1])
        if cast is None or gather is None or (cast.op_type, gather.op_type) != ("Cast", "Gather"):
            continue
        held = [tensors.get(value) for value in (cast.input[0], *gather.input)]
        if (weight := _stored(held, gather)) is not None:
            found[name] = weight
    return found


def _stored(held: list[TensorProto | None], gather: onnx.NodeProto) -> Stored | None:
    """The weight, if these are what `widening` makes."""
    if len(held) != 3 or held[0] is None or held[1] is None or held[2] is None:
        return None
    if (held[0].data_type, held[1].data_type) != (TensorProto.INT8, TensorProto.FLOAT):
        return None
    shape, scaled = list(held[0].dims), list(held[1].dims)
    axis = next((a.i for a in gather.attribute if a.name == "axis"), 0)
    if not 0 <= axis < len(shape) or list(held[2].dims) != [shape[axis]]:
        return None
    steps, scales, blocks = (numpy_helper.to_array(each) for each in held if each is not None)
    sizes = [size for size in SIZES if np.array_equal(blocks, np.arange(shape[axis]) // size)]
    if not sizes or not np.isfinite(scales).all():
        return None
    block = sizes[0]
    if scaled != [*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :]]:
        return None
    return Stored(steps, scales, axis, block)
