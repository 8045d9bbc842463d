"""Energies of bands: the formula, and a model behind them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.models import ConfigError, Listener, build
from streamcell.models.layers.bands import FLOOR, PROBES, Bands, Blocks

CONFIG = {
    "kind": "gru",
    "hidden_size": 6,
    "reset_after": True,
    "input_size": 5,
    "output_size": 1,
    "input_affine": True,
    "bands": {"samples": 80, "rate": 8000, "count": 5},
}


def test_white_noise_has_its_mean_square_in_every_band() -> None:
    x = 0.1 * torch.from_numpy(np.random.default_rng(0).standard_normal((5000, 160)).astype(np.float32))
    energy = (Bands(Blocks())(x).exp() - FLOOR).mean(dim=0)
    torch.testing.assert_close(energy, torch.full((20,), 0.01), rtol=0.1, atol=0)


def test_a_tone_is_loudest_in_its_band_and_silence_is_the_floor() -> None:
    bands = Bands(Blocks())
    mel = np.linspace(np.log1p(60 / 700), np.log1p(8000 / 700), 21)
    for band in range(3, 20):
        hertz = 700 * np.expm1((mel[band] + mel[band + 1]) / 2)
        tone = np.sin(2 * np.pi * hertz / 16_000 * np.arange(160)).astype(np.float32)
        assert int(bands(torch.from_numpy(tone)).argmax()) == band
    torch.testing.assert_close(bands(torch.zeros(3, 160)), torch.full((3, 20), float(np.log(FLOOR))))


def test_the_energy_is_the_mean_power_at_four_frequencies_of_a_band() -> None:
    settings = Blocks(samples=50, rate=4000, count=3)
    x = np.random.default_rng(1).uniform(-1, 1, 50)
    window = np.hanning(52)[1:-1]
    window /= np.sqrt((window**2).sum())
    edges = 700 * np.expm1(np.linspace(np.log1p(60 / 700), np.log1p(2000 / 700), 4))
    wanted = []
    for low, high in itertools.pairwise(edges):
        at = low + (high - low) * (np.arange(PROBES) + 0.5) / PROBES
        power = [abs(np.sum(window * x * np.exp(-2j * np.pi * f * np.arange(50) / 4000))) ** 2 for f in at]
        wanted.append(np.log(np.mean(power) + FLOOR))
    found = Bands(settings)(torch.from_numpy(x.astype(np.float32)))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)


def test_a_twin_is_built_from_the_configuration_and_a_session_may_pause() -> None:
    model = build(CONFIG)
    assert isinstance(model, Listener)
    assert model.input_size == 80
    twin = build(model.config)
    twin.load_state_dict(model.state_dict())
    x = 0.1 * torch.randn(2, 7, 80)
    whole, *last = model(x)
    first, *state = twin(x[:, :3])
    second, *after = twin(x[:, 3:], *state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(after, last)


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"count": 6}, {"rate": 100}, {"more": 1}, {"count": "x"}, {"count": None}]
)
def test_other_settings_of_bands_are_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build({**CONFIG, "bands": {**CONFIG["bands"], **wrong}})  # type: ignore[dict-item]
    with pytest.raises(ConfigError):
        build({**CONFIG, "bands": 5})
