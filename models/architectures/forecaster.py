"""A model behind `Lags`: raw values in, raw forecasts out, whatever the model itself sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamcell.models.errors import ConfigError
from streamcell.models.layers.lags import Base, Lags
from streamcell.models.layers.scan import States

from .base import SequenceModel
from .wrapped import Wrapped


class Forecaster(Wrapped):
    """forward(x, *state, lengths=None) → (y, *state): restore(inner(features(x))) in raw units.

    The states are the inner model's and, if the base needs earlier values, `recent`, with the batch axis where the
    inner model has it.

    Args:
        inner: the model of the features; its outputs are targets·levels.
        settings: what it sees and what its output is added to.
    """

    def __init__(self, inner: SequenceModel, settings: Base) -> None:
        super().__init__(inner, settings.columns, settings.features)
        if inner.output_size != (gives := len(settings.targets) * settings.levels):
            raise ConfigError(
                f"the model behind a base of {settings.base} must give {gives} values; it gives {inner.output_size}"
            )
        self.lags = Lags(settings)
        if settings.history:
            self.state_names = (*inner.state_names, "recent")

    @property
    def config(self) -> dict[str, Any]:
        return {**self.inner.config, "forecast": self.lags.settings.to_json()}

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        own = (self.lags.state_shape,) if self.lags.settings.history else ()
        return (*self.inner.state_shapes, *own)

    def forward(self, x: Tensor, *state: Tensor, lengths: Tensor | None = None) -> States:
        self._check(x, state, lengths)
        if lengths is not None:
            lengths = lengths.to(device=x.device, dtype=torch.int64)
        state = state or self.initial_state(x.shape[0])
        inner, recent = state[: len(self.inner.state_names)], state[len(self.inner.state_names) :]
        first = self._batch_first(recent[0]) if recent else None
        features, base, whole = self.lags(x, first)
        y, *after = self.inner(features, *inner, lengths=lengths)
        y = self.lags.restore(y, base)
        if lengths is not None:
            beyond = torch.arange(y.shape[1], device=y.device) >= lengths[:, None]
            y = y.masked_fill(beyond[:, :, None], 0.0)
        if recent:
            after.append(self._batch_first(self._after(whole, x.shape[1], lengths)))
        return y, *after

    def _batch_first(self, recent: Tensor) -> Tensor:
        """`recent` as the state has it ↔ with its batch axis first."""
        return recent.transpose(0, self.state_axis)

    def _after(self, whole: Tensor, time: int, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return whole[:, time:]
        steps = lengths[:, None] + torch.arange(self.lags.settings.history, device=whole.device)
        return whole.gather(1, steps[:, :, None].expand(-1, -1, whole.shape[2]))
