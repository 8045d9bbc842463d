"""Batch normalisation over timesteps, even over a single one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def batch_normalised(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """`norm` of rows float32[rows, features] (Ioffe & Szegedy 2015).

    In training a single row has no deviation of its own, and torch refuses it; such a row, as the last window of a
    batch may leave, is normalised by the running statistics and leaves them as they are.
    """
    if norm.training and len(rows) < 2:
        return F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    normal: Tensor = norm(rows)
    return normal
