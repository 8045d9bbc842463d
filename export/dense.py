"""Linear maps, with scalings and batch normalisation folded in, and activations as nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from streamcell.models import MLP, Affine, MLPBlock

from .errors import ExportError
from .graph import GraphBuilder
from .tensors import Float64, as_float64

# A shift of more deviations than this stays a node of its own: W·(x·s + t) + b and (W·s)·x + (W·t + b) are the
# same number, but in fp32 the second loses as many digits as the shift is larger than what is left of it.
FOLD_LIMIT = 8.0

ACTIVATION_OPS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "gelu": "Gelu", "softmax": "Softmax"}


@dataclass(frozen=True)
class Scaling:
    """x·scale + shift on the last axis. scale, shift: float64[features]."""

    scale: Float64
    shift: Float64

    @classmethod
    def of(cls, affine: Affine | None) -> Scaling | None:
        """The same in float64; None stays None."""
        return None if affine is None else cls(as_float64(affine.scale), as_float64(affine.shift))

    @property
    def folds(self) -> bool:
        """Whether folding it into the map that follows keeps fp32's digits."""
        return bool(np.abs(self.shift).max() <= FOLD_LIMIT)

    def emit(self, graph: GraphBuilder, x: str, name: str) -> str:
        """Multiply and add, for a scaling that does not fold."""
        scaled = graph.node("Mul", [x, graph.constant(f"{name}.scale", _float32(self.scale))], f"{name}.mul")
        return graph.node(
            "Add", [scaled, graph.constant(f"{name}.shift", _float32(self.shift))], f"{name}.add"
        )


@dataclass(frozen=True)
class Dense:
    """weight·x + bias. weight: float64[out, in]; bias: float64[out]."""

    weight: Float64
    bias: Float64

    @classmethod
    def of(cls, linear: nn.Linear) -> Dense:
        weight = as_float64(linear.weight)
        bias = np.zeros(weight.shape[0]) if linear.bias is None else as_float64(linear.bias)
        return cls(weight, bias)

    def after(self, scaling: Scaling | None) -> Dense:
        """This map of a scaled x: weight·(x·scale + shift) + bias."""
        if scaling is None:
            return self
        return Dense(self.weight * scaling.scale, self.bias + self.weight @ scaling.shift)

    def then(self, scaling: Scaling | None) -> Dense:
        """This map, scaled: (weight·x + bias)·scale + shift."""
        if scaling is None:
            return self
        return Dense(self.weight * scaling.scale[:, None], self.bias * scaling.scale + scaling.shift)

    def emit(self, graph: GraphBuilder, x: str, name: str) -> str:
        """x float32[..., in] → float32[..., out]. MatMul takes any leading axes, Gemm would need two Reshapes."""
        weight = graph.constant(f"{name}.weight", _float32(self.weight.T))
        product = graph.node("MatMul", [x, weight], f"{name}.matmul")
        return graph.node(
            "Add", [product, graph.constant(f"{name}.bias", _float32(self.bias))], f"{name}.add"
        )


def batch_norm(norm: nn.BatchNorm1d) -> Scaling:
    """Batch normalisation in inference (Ioffe & Szegedy 2015, algorithm 2, line 11): a scaling.

    Raises:
        ExportError: it keeps no running statistics, so that inference depends on the batch.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ExportError("batch normalisation without running statistics cannot be exported")
    scale = 1.0 / np.sqrt(as_float64(norm.running_var) + norm.eps)
    if norm.affine:
        scale = scale * as_float64(norm.weight)
    shift = -as_float64(norm.running_mean) * scale
    if norm.affine:
        shift = shift + as_float64(norm.bias)
    return Scaling(scale, shift)


def emit_activation(graph: GraphBuilder, x: str, activation: str, name: str) -> str:
    """The node of an activation by its name; "identity" is no node.

    Raises:
        ExportError: there is no operator for it.
    """
    if activation == "identity":
        return x
    if activation not in ACTIVATION_OPS:
        raise ExportError(f"no operator for activation {activation!r}; there is {', '.join(ACTIVATION_OPS)}")
    attributes: dict[str, Any] = {"axis": -1} if activation == "softmax" else {}
    return graph.node(ACTIVATION_OPS[activation], [x], f"{name}.{activation}", **attributes)


def emit_blocks(
    graph: GraphBuilder, model: MLP, x: str, scaling: Scaling | None
) -> tuple[str, Scaling | None]:
    """The blocks of an MLP. `scaling` comes before the first of them.

    Returns:
        The last block's output, and the scaling if there was no block to fold it into.
    """
    for index, block in enumerate(model.blocks):
        if not isinstance(block, MLPBlock):
            raise ExportError(f"blocks.{index} is a {type(block).__name__}, not an MLPBlock")
        name = f"block{index}"
        if scaling is not None and block.residual:
            # The residual path needs the scaled x itself.
            x, scaling = scaling.emit(graph, x, "input_affine"), None
        dense = Dense.of(block.linear).after(scaling)
        scaling = None
        if block.norm is not None:
            dense = dense.then(batch_norm(block.norm))
        y = emit_activation(graph, dense.emit(graph, x, name), block.activation, name)
        x = graph.node("Add", [x, y], f"{name}.residual") if block.residual else y
    return x, scaling


def _float32(value: Float64) -> NDArray[np.float32]:
    return value.astype(np.float32)
