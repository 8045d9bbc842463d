"""Blocks of sound → the logarithms of their energy in mel bands (Stevens et al. 1937). Nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamcell.models.checks import positive
from streamcell.models.errors import ConfigError

LOWEST_HZ = 60.0
# Frequencies of a band at which its energy is taken.
PROBES = 4
# Mean square of a sample below which a band counts as silent: -80 dB of full scale.
FLOOR = 1e-8


@dataclass(frozen=True)
class Blocks:
    """The settings of `Bands`.

    Attributes:
        samples: of a block, one timestep.
        rate: of samples, in Hz.
        count: bands, of equal width in mel, from 60 Hz to half the rate.
    """

    samples: int = 160
    rate: int = 16_000
    count: int = 20

    def check(self) -> None:
        """Raise ConfigError for a setting out of range."""
        for name, value in asdict(self).items():
            positive(name, value)
        if self.rate <= 2 * LOWEST_HZ:
            raise ConfigError(f"rate must be above {2 * LOWEST_HZ:g} Hz; got {self.rate}")

    def to_json(self) -> dict[str, int]:
        """The settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Blocks:
        """What `to_json` gave.

        Raises:
            ConfigError: a setting is missing, unknown or out of range.
        """
        try:
            blocks = cls(**{name: int(value) for name, value in settings.items()})
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"bands have other settings: {error}") from error
        blocks.check()
        return blocks


class Bands(nn.Module):
    """x float32[..., samples], from -1 to 1 → float32[..., count], ln(energy + `FLOOR`).

    The energy of a band is the mean of |Σ_n w_n x_n e^{−2πi f n / rate}|² over four frequencies f in it, with w a Hann
    window of Σ w² = 1: white noise has its mean square in every band.

    Attributes:
        waves: float32[samples, 2·PROBES·count], the windowed cosines and sines.
        sums: float32[2·PROBES·count, count], which adds up the squares of a band.
    """

    waves: Tensor
    sums: Tensor

    def __init__(self, settings: Blocks) -> None:
        super().__init__()
        settings.check()
        self.settings = settings
        waves, sums = _matrices(settings)
        # They follow from the settings: no part of a model's saved weights.
        self.register_buffer("waves", torch.from_numpy(waves), persistent=False)
        self.register_buffer("sums", torch.from_numpy(sums), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log((x @ self.waves).square() @ self.sums + FLOOR)

    def extra_repr(self) -> str:
        return f"{self.settings}"


def _matrices(settings: Blocks) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    def mel(hertz: float) -> float:
        return float(np.log1p(hertz / 700.0))

    edges = 700.0 * np.expm1(np.linspace(mel(LOWEST_HZ), mel(settings.rate / 2), settings.count + 1))
    within = (np.arange(PROBES) + 0.5) / PROBES
    probes = (edges[:-1, None] + within * np.diff(edges)[:, None]).ravel()
    window = np.hanning(settings.samples + 2)[1:-1]
    angles = 2 * np.pi / settings.rate * np.arange(settings.samples)[:, None] * probes
    window = (window / np.sqrt(np.square(window).sum()))[:, None]
    waves = np.concatenate([window * np.cos(angles), window * np.sin(angles)], axis=1)
    sums = np.tile(np.repeat(np.eye(settings.count), PROBES, axis=0) / PROBES, (2, 1))
    return waves.astype(np.float32), sums.astype(np.float32)
