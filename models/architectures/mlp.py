"""The stateless model: every timestep by itself through blocks of linear, normalisation and activation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from streamcell.models.checks import choose, positive
from streamcell.models.layers.activations import ACTIVATIONS
from streamcell.models.layers.norms import batch_normalised
from streamcell.models.layers.scan import States

from .base import SequenceModel


class MLPBlock(nn.Module):
    """act(norm(linear(x))), plus x if `residual`.

    Attributes:
        linear: [in_features] → [out_features].
        norm: batch normalisation over all timesteps of all rows, or None.
        activation: "sigmoid", "tanh", "relu" or "gelu" (the exact form).
        residual: True only if it was asked for and both sizes are the same.
    """

    ACTIVATIONS = ("sigmoid", "tanh", "relu", "gelu")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str = "relu",
        residual: bool = False,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.norm = nn.BatchNorm1d(out_features) if batch_norm else None
        self.activation = choose("activation", activation, self.ACTIVATIONS)
        self.residual = residual and in_features == out_features

    def forward(self, x: Tensor) -> Tensor:
        """x: float32[rows, in_features] → float32[rows, out_features]."""
        y = self.linear(x)
        if self.norm is not None:
            y = batch_normalised(self.norm, y)
        y = ACTIVATIONS[self.activation](y)
        return x + y if self.residual else y


class MLP(SequenceModel):
    """Multi-layer perceptron on each timestep: x float32[batch, time, input_size], no state.

    Args:
        hidden_sizes: units of each block; empty for a linear model.
        activation: "sigmoid", "tanh", "relu" or "gelu".
        residual: add a block's input to its output if the sizes are the same.
        batch_norm: batch normalisation between each linear map and its activation.
        common: the keyword arguments of `SequenceModel`.
    """

    kind = "mlp"
    trains_with_lengths = True

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        output_size: int,
        *,
        activation: str = "relu",
        residual: bool = False,
        batch_norm: bool = False,
        **common: Any,
    ) -> None:
        sizes = [
            positive("input_size", input_size),
            *(positive("hidden_sizes", size) for size in hidden_sizes),
        ]
        super().__init__(input_size, sizes[-1], output_size, **common)
        self.hidden_sizes = sizes[1:]
        self._settings = {"activation": activation, "residual": residual, "batch_norm": batch_norm}
        self.blocks = nn.ModuleList(
            MLPBlock(a, b, activation=activation, residual=residual, batch_norm=batch_norm)
            for a, b in pairwise(sizes)
        )

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "hidden_sizes": list(self.hidden_sizes), **self._settings}

    def _body(self, x: Tensor, state: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        batch, time, _ = x.shape
        rows = x.flatten(0, 1)
        valid: Tensor | None = None
        if lengths is not None:
            # Batch statistics are those of real timesteps only.
            valid = (torch.arange(time, device=x.device) < lengths[:, None]).reshape(-1)
            rows = rows[valid]
        for index, block in enumerate(self.blocks):
            rows = block(rows if index == 0 else self._drop(rows))
        if valid is not None:
            rows = rows.new_zeros(batch * time, rows.shape[1]).index_put((valid.nonzero()[:, 0],), rows)
        return rows.reshape(batch, time, rows.shape[1]), state
