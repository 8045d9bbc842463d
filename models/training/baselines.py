"""How good a forecast is: its errors in raw units, compared with forecasts that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.data.sequences import SequenceData, Series

MODEL, LAST, SEASONAL = "model", "last value", "seasonal naive"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """Errors of the forecasts of one target.

    Attributes:
        rmse, mae: root of the mean square and mean absolute error, in the target's units.
        mase: `mae` in units of the last value's on the training part (Hyndman & Koehler 2006, not seasonal); None if
            the target never changes there.
    """

    rmse: float
    mae: float
    mase: float | None


@dataclass(frozen=True)
class ForecastReport:
    """A model's errors on the test part, and the baselines'.

    Attributes:
        targets: names.
        season: steps of the seasonal baseline; 0: there is none.
        base: what the model's output is added to, "change" …
        errors: of "model", "last value" and "seasonal naive", one for each target.
        deviation: the model's RMSE of each target on the validation part, for sampling.
        below: quantile → share of test values below its forecasts; empty without quantiles.
    """

    targets: tuple[str, ...]
    season: int
    base: str
    errors: dict[str, tuple[Errors, ...]]
    deviation: tuple[float, ...]
    below: dict[str, float]

    def ratio(self, baseline: str) -> float:
        """The model's RMSE over a baseline's, the geometric mean over targets; above 1 the model loses."""
        pairs = zip(self.errors[MODEL], self.errors[baseline], strict=True)
        tiny = np.finfo(np.float64).tiny
        return float(np.exp(np.mean([np.log(max(a.rmse, tiny) / max(b.rmse, tiny)) for a, b in pairs])))

    @property
    def baselines(self) -> tuple[str, ...]:
        """The forecasts without a model, in this report."""
        return tuple(name for name in self.errors if name != MODEL)

    @property
    def beaten_by(self) -> tuple[str, ...]:
        """The baselines that are better than the model."""
        return tuple(name for name in self.baselines if self.ratio(name) > 1)

    def to_json(self) -> dict[str, Any]:
        """For config.json and the card."""
        return {**asdict(self), "beaten_by": list(self.beaten_by)}


def forecast_report(model: SequenceModel, data: SequenceData, base: str, season: int) -> ForecastReport:
    """Errors of one-step forecasts on the test part, of every value that the file has.

    The model first reads the rows before the test part, as many as the data set has; these do not count. The seasonal
    baseline takes the last value if no season lies before a row.

    Args:
        season: of the seasonal baseline, in steps; below 2: without it.
    """
    (test,), (valid,), (train,) = data.test, data.valid, data.train
    names = tuple(data.about["targets"])
    predicted = {MODEL: point_forecast(model, data, test), LAST: test.x[:, data.targets].astype(np.float64)}
    if season > 1:
        predicted[SEASONAL] = _seasonal(predicted[LAST], season)
    scale = np.nanmean(np.abs(train.y - train.x[:, data.targets]), axis=0)
    return ForecastReport(
        names,
        season if season > 1 else 0,
        base,
        {name: _errors(y, test.y, scale) for name, y in predicted.items()},
        tuple(each.rmse for each in _errors(point_forecast(model, data, valid), valid.y, scale)),
        _below(model, data, test),
    )


@torch.no_grad()
def outputs_of(model: SequenceModel, series: Series) -> Values:
    """float64[time, output_size] of one series, from the initial state."""
    x = torch.from_numpy(series.x)[None].to(model.head.weight.device)
    return np.asarray(model.eval()(x)[0][0].cpu().double().numpy(), np.float64)


def point_forecast(model: SequenceModel, data: SequenceData, series: Series) -> Values:
    """float64[time, targets]: the output, or of quantiles the one nearest to the median."""
    y = outputs_of(model, series)
    if not data.quantiles:
        return y
    middle = int(np.abs(np.array(data.quantiles) - 0.5).argmin())
    return y[:, middle :: len(data.quantiles)]


def _seasonal(last: Values, season: int) -> Values:
    """The value one season before the one that is forecast; the last value before there is one."""
    forecast = last.copy()
    forecast[season - 1 :] = last[: len(last) - season + 1]
    return forecast


def _errors(y: Values, truth: NDArray[np.float32], scale: NDArray[Any]) -> tuple[Errors, ...]:
    difference = y - truth
    rmse = np.sqrt(np.nanmean(difference**2, axis=0))
    mae = np.nanmean(np.abs(difference), axis=0)
    return tuple(
        Errors(float(a), float(b), float(b / unit) if unit > 0 else None)
        for a, b, unit in zip(rmse, mae, scale, strict=True)
    )


def _below(model: SequenceModel, data: SequenceData, test: Series) -> dict[str, float]:
    if not data.quantiles:
        return {}
    y = outputs_of(model, test).reshape(len(test), -1, len(data.quantiles))
    known = ~np.isnan(test.y)
    shares: Sequence[float] = [
        float((test.y[known] < y[:, :, place][known]).mean()) for place in range(len(data.quantiles))
    ]
    return {f"{level:g}": share for level, share in zip(data.quantiles, shares, strict=True)}
