"""Training sequences changed at random, each time that they are drawn: there are more of them than the data has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from streamcell.models.data.piano import room, transpose
from streamcell.models.data.sequences import SequenceData, Series
from streamcell.models.errors import ConfigError


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training sequence, drawn anew for each sequence in each epoch.

    Attributes:
        transpose: piano keys are moved up or down by up to this many semitones.
        stretch: a sequence becomes longer or shorter, by a factor of up to 1 + `stretch`, log-uniform; values between
            timesteps are interpolated linearly (speed perturbation, Ko et al. 2015).
        noise: the deviation of the normal noise added to each value of x, in the deviations by which the model
            standardises it (Bishop 1995).
    """

    transpose: int = 0
    stretch: float = 0.0
    noise: float = 0.0

    def check(self, data: SequenceData) -> None:
        """Raise ConfigError for what cannot be done to the sequences of `data`."""
        for name, fits, needs in (
            ("transpose", data.transposable, "piano keys"),
            ("stretch", data.stretchable, "sequences with one target, at their end"),
            ("noise", data.input_standard is not None and not data.continuous, "standardised sequences"),
        ):
            if getattr(self, name) and not fits:
                raise ConfigError(f"{name} needs {needs}; the data set is {data.name}")

    def of(self, piece: Series, data: SequenceData, rng: np.random.Generator) -> Series:
        """One sequence of `data`, changed."""
        if self.transpose:
            piece = _transposed(piece, self.transpose, rng, moves_y=data.distribution == "bernoulli_logits")
        if self.stretch:
            piece = _stretched(piece, self.stretch, rng)
        if self.noise and data.input_standard is not None:
            added = rng.standard_normal(piece.x.shape, np.float32) * data.input_standard.std
            piece = replace(piece, x=piece.x + np.float32(self.noise) * added)
        return piece


def _transposed(piece: Series, semitones: int, rng: np.random.Generator, *, moves_y: bool) -> Series:
    """x moved by up to `semitones`, and y with it if it is keys as well, and not classes."""
    down, up = room((np.concatenate([piece.x, piece.y[-1:]]) if moves_y else piece.x) > 0)
    by = int(rng.integers(-min(semitones, down), min(semitones, up) + 1))
    return Series(transpose(piece.x, by), transpose(piece.y, by) if moves_y else piece.y)


def _stretched(piece: Series, stretch: float, rng: np.random.Generator) -> Series:
    """x with another number of timesteps between its first and its last, and y with its last target alone."""
    steps = len(piece)
    count = max(1, round(steps * (1.0 + stretch) ** rng.uniform(-1.0, 1.0)))
    places = np.linspace(0.0, steps - 1.0, count)
    before = places.astype(np.int64)
    after = np.minimum(before + 1, steps - 1)
    share = (places - before).astype(np.float32)[:, None]
    y = np.zeros((count, piece.y.shape[1]), piece.y.dtype)
    y[-1] = piece.y[-1]
    return replace(piece, x=piece.x[before] * (1.0 - share) + piece.x[after] * share, y=y)
