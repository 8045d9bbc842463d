"""The loss of a model over whole sequences, each from the initial state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .base import SequenceModel
from .batches import in_order
from .losses import masked_sum, step_losses
from .sequences import SequenceData, Series

BATCH = 64


@torch.no_grad()
def evaluate(model: SequenceModel, data: SequenceData, split: str) -> float:
    """Mean loss per timestep over "train", "valid" or "test" of `data`.

    Every sequence runs whole and untransposed from the initial state, without dropout. The losses of all
    timesteps of all sequences are added and divided by their number: long sequences count for more.
    """
    series: Sequence[Series] = data.part(split)
    device = model.head.weight.device
    std = None if data.output_standard is None else torch.from_numpy(data.output_standard.std).to(device)
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in in_order(series, BATCH):
        batch = batch.to(device)
        y, *_ = model(batch.x)
        total += float(masked_sum(step_losses(y, batch.y, data.distribution, std).double(), batch.lengths))
        count += batch.timesteps
    model.train(was_training)
    return total / count


def persistence(data: SequenceData, split: str) -> float | None:
    """The same loss for foretelling that nothing changes, where targets are among the inputs; else None.

    It is what a forecast has to beat, and is written beside a forecast's loss.
    """
    if data.distribution != "real" or data.output_standard is None:
        return None
    std = torch.from_numpy(data.output_standard.std)
    total = sum(
        float(step_losses(torch.from_numpy(s.y[:-1]), torch.from_numpy(s.y[1:]), "real", std).double().sum())
        for s in data.part(split)
    )
    return (
        total / sum(len(s) - 1 for s in data.part(split))
        if all(len(s) > 1 for s in data.part(split))
        else None
    )
