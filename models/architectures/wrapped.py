"""A model behind a fixed computation: it takes raw values, and the model inside what is made of them."""

from __future__ import annotations

from torch import nn

from streamcell.models.errors import ConfigError
from streamcell.models.layers.affine import Affine

from .base import SequenceModel


class Wrapped(SequenceModel):
    """What models of this kind share: all but x is the inner model's.

    Args:
        inner: takes `features` a timestep.
        input_size: raw values of a timestep of x.

    Attributes:
        typical: (x − mean) / deviation of raw values; no computation uses it, it only describes x.

    Raises:
        ConfigError: the inner model takes another number of features.
    """

    def __init__(self, inner: SequenceModel, input_size: int, features: int) -> None:
        nn.Module.__init__(self)
        if inner.input_size != features:
            raise ConfigError(f"the inner model must take {features} features; it takes {inner.input_size}")
        self.inner = inner
        self.typical = Affine(input_size)
        self.kind = inner.kind
        self.input_size, self.output_size = input_size, inner.output_size
        self.distribution = inner.distribution
        self.state_axis = inner.state_axis
        self.state_names = inner.state_names
        self.trains_with_lengths = inner.trains_with_lengths

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """The inner model's."""
        return self.inner.head

    @property
    def input_affine(self) -> Affine:  # type: ignore[override]
        """How raw values are to be scaled to look normal."""
        return self.typical

    @property
    def output_affine(self) -> None:  # type: ignore[override]
        """None: the inner model has its own."""
        return None

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.inner.state_shapes
