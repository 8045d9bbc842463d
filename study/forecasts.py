"""`python -m streamcell.study.forecasts FILE …`: one-step forecasts beside ARIMA and exponential smoothing.

Trains each CSV file by the preset, with each seed, and fits statsmodels' models to the same rows. Those learn from the
training and the validation part. They forecast the test part one step ahead, with fixed parameters and states that
follow the data. It prints the table of docs/forecasting.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamcell.models import TrainConfig, load_table, train
from streamcell.models.data.csv_table import TRAIN, VALID
from streamcell.models.data.tables.table import read_table
from streamcell.models.training import presets

Values = NDArray[np.float64]
# Fitted on `until` values, given all: one-step forecasts of all.
Classical = Callable[[Values, int], Values]


def arima(order: tuple[int, int, int], seasonal: tuple[int, int, int, int], log: bool) -> Classical:
    """Box & Jenkins's model, by the Kalman filter."""

    def forecast(values: Values, until: int) -> Values:
        from statsmodels.tsa.statespace.sarimax import SARIMAX

        z = np.log(values) if log else values
        trend = "n" if order[1] or seasonal[1] else "c"
        fitted = SARIMAX(z[:until], order=order, seasonal_order=seasonal, trend=trend).fit(disp=False)
        found = np.asarray(fitted.apply(z).fittedvalues)
        return np.exp(found) if log else found

    return forecast


def autoregression(lags: int) -> Classical:
    """AR(lags) by least squares, which takes seconds where the Kalman filter takes minutes."""

    def forecast(values: Values, until: int) -> Values:
        rows = np.stack([values[lags - 1 - k : len(values) - 1 - k] for k in range(lags)], axis=1)
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        weights, *_ = np.linalg.lstsq(rows[: until - lags], values[lags:until], rcond=None)
        return np.concatenate([values[:lags], rows @ weights])

    return forecast


def smoothing(**settings: Any) -> Classical:
    """Exponential smoothing in state-space form (Hyndman et al. 2008)."""

    def forecast(values: Values, until: int) -> Values:
        from statsmodels.tsa.exponential_smoothing.ets import ETSModel

        fitted = ETSModel(values[:until], **settings).fit(disp=False)
        return np.asarray(ETSModel(values, **settings).smooth(fitted.params).fittedvalues)

    return forecast


# File's stem, or the beginning of it → models of the literature for it.
CLASSICAL: dict[str, dict[str, Classical]] = {
    "Airline": {
        "ARIMA(0,1,1)(0,1,1)₁₂ of logarithms": arima((0, 1, 1), (0, 1, 1, 12), True),
        "ETS(M,A,M)": smoothing(error="mul", trend="add", seasonal="mul", seasonal_periods=12),
    },
    "sunspots": {
        "ARIMA(9,0,0)": arima((9, 0, 0), (0, 0, 0, 0), False),
        "ETS(A,N,N)": smoothing(error="add"),
    },
    "uk-electricity": {
        "AR(168), least squares": autoregression(168),
        "ETS(A,N,A)": smoothing(error="add", seasonal="add", seasonal_periods=24),
    },
}


def compare(file: Path, seeds: Sequence[int], **given: Any) -> list[str]:
    """Lines of the table for one file."""
    values = read_table(file).values[:, 0].astype(np.float64)
    until = int(len(values) * (TRAIN + VALID))
    scale = np.abs(np.diff(values[: int(len(values) * TRAIN)])).mean()
    lines = []
    rows: dict[str, list[tuple[float, float, float]]] = {}
    season = load_table(file).season
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            config: TrainConfig = presets.config(
                "csv", data=file, out=Path(folder) / "run", seed=seed, **given
            )
            began_s = time.monotonic()
            report = train(config).forecast
            took_s = time.monotonic() - began_s
        if report is None:
            raise ValueError(f"{file} is no forecast")
        name = f"{config.model['kind']}, base {report.base}"
        rows.setdefault(name, []).append(
            (report.errors["model"][0].rmse, report.errors["model"][0].mae, took_s)
        )
        for baseline in report.baselines:
            told = report.errors[baseline][0]
            rows[f"{baseline}{f' ({season} steps)' if 'season' in baseline else ''}"] = [
                (told.rmse, told.mae, 0.0)
            ]
    family = next((models for stem, models in CLASSICAL.items() if file.name.startswith(stem)), {})
    for name, model in family.items():
        began_s = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            error = (model(values, until) - values)[until:]
        rows[name] = [
            (float(np.sqrt(np.mean(error**2))), float(np.abs(error).mean()), time.monotonic() - began_s)
        ]
    for name, found in rows.items():
        rmse, mae, took = (np.median([each[place] for each in found]) for place in range(3))
        spread = (
            f" ({min(f[0] for f in found):.4g} to {max(f[0] for f in found):.4g})" if len(found) > 1 else ""
        )
        errors = f"{rmse:.4g}{spread} | {mae:.4g} | {mae / scale:.3f}"
        lines.append(f"| {file.name.split('.')[0]} | {name} | {errors} | {took:.0f} s |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, fit and print."""
    parser = argparse.ArgumentParser(prog="python -m streamcell.study.forecasts", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args(arguments)
    print("| series | forecast | RMSE | MAE | MASE | time |\n|---|---|---|---|---|---|")
    for file in given.files:
        print("\n".join(compare(file, given.seeds)), flush=True)


if __name__ == "__main__":
    main()
