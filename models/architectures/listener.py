"""A model behind `Bands`: blocks of sound in, whatever the model inside says of their energy in bands out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from streamcell.models.layers.bands import Bands, Blocks
from streamcell.models.layers.scan import States

from .base import SequenceModel
from .wrapped import Wrapped

# The usual deviation of a sample of speech whose largest are near 1.
TYPICAL = 0.05


class Listener(Wrapped):
    """forward(x float32[batch, time, samples], *state, lengths=None) → (y, *state), with inner(bands(x)).

    The states are the inner model's: a block is not remembered.
    """

    def __init__(self, inner: SequenceModel, settings: Blocks) -> None:
        super().__init__(inner, settings.samples, settings.count)
        self.bands = Bands(settings)
        self.typical.scale.fill_(1 / TYPICAL)

    @property
    def config(self) -> dict[str, Any]:
        return {**self.inner.config, "bands": self.bands.settings.to_json()}

    def forward(self, x: Tensor, *state: Tensor, lengths: Tensor | None = None) -> States:
        self._check(x, state, lengths)
        after: States = self.inner(self.bands(x), *state, lengths=lengths)
        return after
