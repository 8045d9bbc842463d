"""What a data set hands to training: sequences of inputs and targets, and their standardisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .splits import SPLITS

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Series:
    """One sequence.

    Attributes:
        x: float32[time, input_size], or tokens int64[time].
        y: float32[time, output_size], the target after each timestep of x. Classes are one-hot, with zeros at a
            timestep that has no target (the class of a whole sequence is at its last timestep); or they are numbers,
            int64[time], with −1 at a timestep that has no target. A real value that is not known is NaN.
        group: sequences of different groups never share a batch.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    group: int = 0

    def __len__(self) -> int:
        return len(self.x)

    def asked(self, distribution: str) -> int:
        """Timesteps that have a target; `distribution` as in `SequenceData`."""
        if self.y.ndim == 1:
            return int((self.y >= 0).sum())
        if distribution == "categorical_logits":
            return int(self.y.any(axis=1).sum())
        return int((~np.isnan(self.y).all(axis=1)).sum())


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of each feature, float32[features], from the training part only."""

    mean: Floats
    std: Floats


@dataclass(frozen=True)
class SequenceData:
    """A data set, split, in raw units.

    Attributes:
        name: its name in configurations.
        train, valid, test: the sequences of each part.
        distribution: what a model's y should parametrise, "bernoulli_logits", "categorical_logits", "real" or
            "quantiles". The loss follows from it.
        input_standard, output_standard: what to bake into the model; None: the values are fit as they are.
        transposable: whether x is piano keys, so that a sequence may be moved up and down (y with it if it is keys).
        stretchable: whether a sequence may be played faster or slower: its one target is at its last timestep.
        continuous: whether `train` is one long series, to be cut into rows, rather than many pieces.
        tokens: the number of tokens if x is tokens.
        classes: the number of classes if y is class numbers.
        judged_by: what says which epoch's weights are kept: the lowest "loss" or the highest "accuracy" on `valid`.
        about: provenance as JSON values, for config.json and the model card.
        targets: of a forecast, which features of x y is the next timestep of.
        season: of a forecast, timesteps of the usual season; 0: none.
        quantiles: of y that a model gives for each target, if `distribution` says so.
        notes: what the user should know of how the data was read.
        measure: which further figures of a trained model to write beside its losses; training knows how to take them.
        words: of a pronouncing dictionary, each part's words with their pronunciations.
        sample_rate: of sound in Hz, if a timestep of x is a block of its samples; 0: x is no sound.
    """

    name: str
    train: Sequence[Series]
    valid: Sequence[Series]
    test: Sequence[Series]
    distribution: str
    input_standard: Standard | None = None
    output_standard: Standard | None = None
    transposable: bool = False
    stretchable: bool = False
    continuous: bool = False
    tokens: int | None = None
    classes: int | None = None
    judged_by: Literal["loss", "accuracy"] = "loss"
    about: dict[str, Any] = field(default_factory=dict)
    targets: tuple[int, ...] = ()
    season: int = 0
    quantiles: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    measure: Literal["phoneme_errors", "speech_errors"] | None = None
    words: Mapping[str, Mapping[str, Sequence[tuple[str, ...]]]] = field(default_factory=dict)
    sample_rate: int = 0

    @property
    def input_size(self) -> int:
        """Features of one timestep of x; the number of tokens if x is tokens."""
        if self.tokens is not None:
            return self.tokens
        return int(self.train[0].x.shape[1])

    @property
    def output_size(self) -> int:
        """Features of one timestep of a model's y; the number of classes if y is class numbers."""
        if self.classes is not None:
            return self.classes
        return int(self.train[0].y.shape[1]) * max(1, len(self.quantiles))

    def part(self, split: str) -> Sequence[Series]:
        """The sequences of "train", "valid" or "test"."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Sequences and timesteps to predict, by split."""
        return {
            split: {
                "sequences": len(self.part(split)),
                "timesteps": sum(one.asked(self.distribution) for one in self.part(split)),
            }
            for split in SPLITS
        }
