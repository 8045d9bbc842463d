"""A fixed per-feature scale and shift: how standardisation learned in training becomes part of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """x·scale + shift on the last axis. The two are buffers: saved with the weights, never trained.

    Attributes:
        scale: float32[features], ones until set.
        shift: float32[features], zeros until set.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("shift", torch.zeros(features))

    @torch.no_grad()
    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """From raw units to zero mean and unit deviation: (x − mean) / std. Both float[features]."""
        self.scale.copy_(1.0 / std)
        self.shift.copy_(-mean / std)

    @torch.no_grad()
    def restore(self, mean: Tensor, std: Tensor) -> None:
        """From zero mean and unit deviation back to raw units: y·std + mean. Both float[features]."""
        self.scale.copy_(std)
        self.shift.copy_(mean)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32[..., features] → float32[..., features]."""
        return x * self.scale + self.shift
