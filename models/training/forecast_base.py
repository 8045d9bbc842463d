"""Chooses the base of a forecast, and builds the model behind it with scalings from the training part."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamcell.models.architectures.build import build
from streamcell.models.architectures.forecaster import Forecaster
from streamcell.models.data.sequences import SequenceData
from streamcell.models.errors import ConfigError
from streamcell.models.layers.lags import Base, Lags

from .config import TrainConfig

# A share of a level's deviation by which the training part's ends must differ to count as a trend.
_TREND = 1.0


def choose_base(config: TrainConfig, data: SequenceData) -> Base | None:
    """What `config.forecast` says; with "auto" the base that forecasts the training part best without a model.

    None: the model sees values and gives values, without a base.

    Raises:
        ConfigError: there is no season, or a logarithm of a value that is not above 0.
    """
    asked, plus, rest = config.forecast.rpartition("+log")
    log = bool(plus and not rest)
    asked = asked if log else config.forecast
    season = config.season or data.season
    positive = bool((_known(data) > 0).all())
    if log and not positive:
        raise ConfigError("forecast with +log needs training values above 0")
    if asked == "auto":
        asked, log = _best(data, season, positive)
    if "season" in asked and season < 2:
        raise ConfigError(
            f"a forecast of {asked} needs a season that the time axis does not tell: --season STEPS"
        )
    if asked == "value" and not log:
        return None
    return _settings(data, asked, season, log)


def make_forecaster(config: TrainConfig, data: SequenceData, base: Base) -> Forecaster:
    """The untrained model; it forecasts the base plus the mean difference from it."""
    lags = Lags(base)
    lags.floor.copy_(torch.from_numpy(_floors(data)))
    features, left = _on_training(lags, data)
    model = build(
        {
            **config.model,
            "input_size": base.features,
            "output_size": data.output_size,
            "distribution": data.distribution,
            "input_affine": True,
            "output_affine": True,
        }
    )
    if model.input_affine is None or model.output_affine is None:
        raise ConfigError(f"a model of kind {model.kind} cannot have a base")
    model.input_affine.standardise(*_moments(features))
    model.output_affine.restore(*(each.repeat_interleave(base.levels) for each in _moments(left)))
    if base.base != "value":
        torch.nn.init.zeros_(model.head.weight)
        torch.nn.init.zeros_(model.head.bias)
    whole = Forecaster(model, base)
    whole.lags.load_state_dict(lags.state_dict())
    if data.input_standard is not None:
        whole.typical.standardise(*map(torch.from_numpy, (data.input_standard.mean, data.input_standard.std)))
    return whole


def _settings(data: SequenceData, base: str, season: int, log: bool) -> Base:
    levels = max(1, len(data.quantiles))
    return Base(data.input_size, data.targets, base, season if "season" in base else 0, log, levels)


def _best(data: SequenceData, season: int, positive: bool) -> tuple[str, bool]:
    """The base and whether to take logarithms."""
    names = ["change"]
    if 1 < season < len(data.train[0]) // 2:
        names += ["season", "difference+season"]
    found = {("value", False): _error(data, None)}
    for name in names:
        for log in (False, True) if positive else (False,):
            found[name, log] = _error(data, _settings(data, name, season, log))
    best = min(found, key=found.__getitem__)
    if best[0] == "change" and _has_trend(data):
        return "difference", best[1]
    return best


def _error(data: SequenceData, base: Base | None) -> float:
    """The mean square, in training deviations, of what the base and the mean of the rest do not forecast."""
    truth = _tensor(data.train[0].y)
    if base is None:
        error = truth - truth.nanmean(dim=1, keepdim=True)
    else:
        lags = Lags(base)
        lags.floor.copy_(torch.from_numpy(_floors(data)))
        _, left = _on_training(lags, data)
        mean = left.nanmean(dim=1, keepdim=True)
        _, start, _ = lags(_tensor(data.train[0].x), _recent(lags))
        y = mean + start
        error = (torch.exp(y) if base.log else y) - truth
        error = error[:, base.history :]
    std = torch.ones(1) if data.output_standard is None else torch.from_numpy(data.output_standard.std)
    found = float((error / std).square().nanmean())
    return found if math.isfinite(found) else math.inf


def _on_training(lags: Lags, data: SequenceData) -> tuple[Tensor, Tensor]:
    """Features of the training part, and what is left of its targets above the base, NaN if they are not known."""
    series = data.train[0]
    features, start, _ = lags(_tensor(series.x), _recent(lags))
    z = lags.transformed(_tensor(series.y))
    left = z if lags.settings.base == "value" else z - start
    skip = min(lags.settings.history, len(series) // 2)
    return features[:, skip:], left[:, skip:]


def _recent(lags: Lags) -> Tensor | None:
    return torch.zeros(1, *lags.state_shape) if lags.settings.history else None


def _tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(values)[None]


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of float32[1, time, features] without NaN; 1 if a feature is constant."""
    wide = values[0].double()
    mean = wide.nanmean(dim=0).nan_to_num(0.0)
    std = (wide - mean).square().nanmean(dim=0).sqrt().nan_to_num(1.0)
    flat = std <= 1e-7 * mean.abs().clamp(min=1e-30)
    return mean.float(), torch.where(flat, 1.0, std).float()


def _known(data: SequenceData) -> NDArray[np.float32]:
    y = data.train[0].y
    return np.asarray(y[~np.isnan(y)], np.float32)


def _floors(data: SequenceData) -> NDArray[np.float32]:
    """float32[targets]: a tenth of the smallest training value above 0."""
    y = data.train[0].y
    least = np.nanmin(np.where(y > 0, y, np.nan), axis=0, initial=np.float32(np.finfo(np.float32).max))
    return np.where(least < np.finfo(np.float32).max, least * np.float32(0.1), 1.0).astype(np.float32)


def _has_trend(data: SequenceData) -> bool:
    """Whether the last third of the training part lies elsewhere than the first, of any target."""
    y = data.train[0].y
    third = max(len(y) // 3, 1)
    # Of a target without values in a third, nothing is known.
    first, last, whole = (np.ma.masked_invalid(part) for part in (y[:third], y[-third:], y))
    moved = np.abs(last.mean(axis=0) - first.mean(axis=0)) > _TREND * whole.std(axis=0)
    return bool(np.ma.filled(moved, False).any())
