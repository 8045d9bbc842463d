"""Losses of one timestep, by what a model's output parametrises."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# What a loss is called in run folders, by distribution.
LOSS_NAMES = {
    "bernoulli_logits": "negative log-likelihood per timestep, summed over keys, in nats",
    "categorical_logits": "cross-entropy per timestep that has a class, in nats",
    "real": "squared error per timestep, averaged over targets, in squared training deviations",
    "quantiles": "pinball loss per timestep, averaged over targets and quantiles, in training deviations",
}


def step_losses(
    y: Tensor,
    target: Tensor,
    distribution: str,
    std: Tensor | None = None,
    quantiles: Sequence[float] = (),
) -> Tensor:
    """The loss of every timestep.

    Args:
        y: float32[batch, time, output_size], as the model gives it; quantiles of a target are neighbours.
        target: float32[batch, time, output_size]; for "categorical_logits" one-hot, or zeros for a timestep
            that has no class and so no loss; or the class's number, int64[batch, time], −1 if there is none. For
            "real" and "quantiles", NaN is a value that is not known: it has no loss.
        distribution: "bernoulli_logits": negative log-likelihood in nats, summed over features.
            "categorical_logits": cross-entropy in nats. "real": squared error, averaged over features.
            "quantiles": pinball loss (Koenker & Bassett 1978), averaged over features and quantiles.
        std: float32[targets]; errors of "real" and "quantiles" are counted in these units.
        quantiles: those of "quantiles".

    Returns:
        float32[batch, time].
    """
    if distribution == "bernoulli_logits":
        return F.binary_cross_entropy_with_logits(y, target, reduction="none").sum(-1)
    if distribution == "categorical_logits":
        if target.dim() == 2:
            losses = F.cross_entropy(y.flatten(0, 1), target.flatten(), ignore_index=-1, reduction="none")
            return losses.view_as(target)
        return -(target * F.log_softmax(y, dim=-1)).sum(-1)
    known = ~target.isnan()
    if distribution == "quantiles":
        levels = y.new_tensor(quantiles)
        forecast = y.reshape(*target.shape, len(quantiles))
        over = torch.where(known[..., None], target[..., None] - forecast, 0.0)
        errors = torch.maximum(levels * over, (levels - 1) * over).mean(-1)
        errors = errors if std is None else errors / std
    else:
        error = torch.where(known, y - target, 0.0)
        errors = (error if std is None else error / std).square()
    return errors.sum(-1) / known.sum(-1).clamp(min=1)


def bernoulli_nll(logits: NDArray[np.floating], target: NDArray[np.generic]) -> NDArray[np.float64]:
    """The same for numpy: nats of each timestep, summed over keys; float64[...] of [..., keys] each."""
    wide = logits.astype(np.float64)
    nats: NDArray[np.float64] = (np.logaddexp(0.0, wide) - wide * target.astype(np.float64)).sum(-1)
    return nats


def counted(target: Tensor, lengths: Tensor, distribution: str) -> Tensor:
    """Which timesteps a loss counts: those within a row's length that have a class, or a value that is known.

    target: as for `step_losses`; lengths: int64[batch]. Returns bool[batch, time].
    """
    within = torch.arange(target.shape[1], device=target.device) < lengths[:, None]
    if distribution in ("real", "quantiles"):
        return within & ~target.isnan().all(-1)
    if distribution != "categorical_logits":
        return within
    return within & (target >= 0 if target.dim() == 2 else target.any(-1))


def masked_sum(losses: Tensor, lengths: Tensor) -> Tensor:
    """The sum of losses float32[batch, time] over each row's first `lengths` (int64[batch]) timesteps."""
    return losses.masked_fill(
        torch.arange(losses.shape[1], device=losses.device) >= lengths[:, None], 0.0
    ).sum()
