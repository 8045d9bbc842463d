"""The loss and accuracy of a model over whole sequences, each from the initial state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.data.sequences import SequenceData, Series

from .batches import in_order
from .losses import counted, masked_sum, step_losses

BATCH = 64


@dataclass(frozen=True)
class Score:
    """How good a model is on a part of its data.

    Attributes:
        loss: mean over the timesteps that count.
        accuracy: share of them whose most probable class is the true one; None if there are no classes.
    """

    loss: float
    accuracy: float | None


def evaluate(model: SequenceModel, data: SequenceData, split: str) -> float:
    """The loss of `score`."""
    return score(model, data, split).loss


@torch.no_grad()
def score(model: SequenceModel, data: SequenceData, split: str) -> Score:
    """Loss per timestep and accuracy over "train", "valid" or "test" of `data`.

    Every sequence runs whole and untransposed from the initial state, without dropout. The losses of all
    timesteps of all sequences are added and divided by their number: long sequences count for more. If there
    are classes, the timesteps that have one count.
    """
    device = model.head.weight.device
    was_training = model.training
    model.eval()
    found = score_of(lambda x, lengths: model(x)[0], data, split, device)
    model.train(was_training)
    return found


def score_of(
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    data: SequenceData,
    split: str,
    device: torch.device | None = None,
) -> Score:
    """The same of what computes y [batch, time, output] from x and the rows' lengths int64[batch], on `device`."""
    series: Sequence[Series] = data.part(split)
    device = device or torch.device("cpu")
    std = None if data.output_standard is None else torch.from_numpy(data.output_standard.std).to(device)
    total, right, count = 0.0, 0, 0
    for batch in in_order(series, BATCH):
        batch = batch.to(device)
        y = forward(batch.x, batch.lengths)
        losses = step_losses(y, batch.y, data.distribution, std, data.quantiles)
        total += float(masked_sum(losses.double(), batch.lengths))
        counts = counted(batch.y, batch.lengths, data.distribution)
        if data.distribution == "categorical_logits":
            truth = batch.y if batch.y.dim() == 2 else batch.y.argmax(-1)
            right += int((counts & (y.argmax(-1) == truth)).sum())
        count += int(counts.sum())
    return Score(total / count, right / count if data.distribution == "categorical_logits" else None)
