"""How often a model is wrong about whether somebody speaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.data.sequences import SequenceData, Series


@dataclass(frozen=True)
class Frames:
    """Counts of timesteps.

    Attributes:
        speech, silence: with and without speech.
        missed: of those with speech, taken for silence.
        false: of those without, taken for speech.
    """

    speech: int
    silence: int
    missed: int
    false: int

    @property
    def error(self) -> float:
        """Share of all timesteps that are wrong."""
        return (self.missed + self.false) / (self.speech + self.silence)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall of speech."""
        hit = self.speech - self.missed
        return 2 * hit / (2 * hit + self.missed + self.false)


def count_frames(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> Frames:
    """Count over pairs of (what a model says, what is true), both bool[timesteps]."""
    said, true = (np.concatenate([each.ravel() for each in column]) for column in zip(*pairs, strict=True))
    return Frames(int(true.sum()), int((~true).sum()), int((true & ~said).sum()), int((~true & said).sum()))


def loudness_errors(data: SequenceData, split: str) -> Frames:
    """Count what the loudness of each timestep alone says, above the threshold that is best on the training part."""
    loud, true = (np.concatenate(column) for column in zip(*map(_loudness, data.train), strict=True))
    order = np.argsort(loud)
    # With the threshold behind the k quietest timesteps: their speech is missed, and the others' silence is false.
    wrong = np.cumsum(true[order]) + (~true).sum() - np.cumsum(~true[order])
    threshold = loud[order][wrong.argmin()]
    return count_frames((loud > threshold, true) for loud, true in map(_loudness, data.part(split)))


def _loudness(one: Series) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.square(one.x).mean(axis=1), one.y[:, 0] > 0.5


@torch.no_grad()
def speech_errors(model: SequenceModel, data: SequenceData, split: str) -> dict[str, float]:
    """Frame error rate and F1 of a part; a timestep counts as speech if its log-odds are above 0."""
    device = model.head.weight.device
    frames = count_frames(
        (model(torch.from_numpy(one.x)[None].to(device))[0][0].cpu().numpy() > 0, one.y > 0.5)
        for one in data.part(split)
    )
    return {"frame_error_rate": frames.error, "f1": frames.f1}
