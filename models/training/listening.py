"""Builds the model of a data set whose timesteps are blocks of sound, with scalings from the training part."""

from __future__ import annotations

import torch

from streamcell.models.architectures.build import build
from streamcell.models.architectures.listener import Listener
from streamcell.models.data.sequences import SequenceData
from streamcell.models.errors import ConfigError
from streamcell.models.layers.bands import Bands, Blocks

from .config import TrainConfig


def make_listener(config: TrainConfig, data: SequenceData) -> Listener:
    """The untrained model; it standardises the bands' energies. The model's setting `bands` says how many bands.

    Raises:
        ConfigError: the model's settings do not go together.
    """
    settings = dict(config.model)
    count = settings.pop("bands", Blocks.count)
    blocks = Blocks.from_json({"samples": data.input_size, "rate": data.sample_rate, "count": count})
    model = build(
        {
            **settings,
            "input_size": blocks.count,
            "output_size": data.output_size,
            "distribution": data.distribution,
            "input_affine": True,
            "bands": blocks.to_json(),
        }
    )
    if not isinstance(model, Listener) or model.inner.input_affine is None:
        raise ConfigError(f"a model of kind {model.kind} cannot take blocks of sound")
    model.inner.input_affine.standardise(*_moments(model.bands, data))
    return model


@torch.no_grad()
def _moments(bands: Bands, data: SequenceData) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each band over the training part, float32[count]."""
    energies = torch.cat([bands(torch.from_numpy(series.x)) for series in data.train]).double()
    return energies.mean(dim=0).float(), energies.std(dim=0).clamp(min=1e-3).float()
