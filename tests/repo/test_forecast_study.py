"""The study of forecasts: its classical models on series with a known answer, and the table that it prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamcell.study.forecasts import arima, autoregression, compare, smoothing


def test_an_autoregression_foretells_what_follows_its_formula() -> None:
    values = [1.0, 2.0]
    while len(values) < 60:
        values.append(3 + 1.2 * values[-1] - 0.8 * values[-2])
    series = np.array(values)
    np.testing.assert_allclose(autoregression(2)(series, 40), series, atol=1e-8)


def test_the_parameters_are_of_the_first_rows_and_the_states_of_all() -> None:
    rng = np.random.default_rng(0)
    noise = np.cumsum(rng.normal(0, 1, 80)) + 50
    changed = noise.copy()
    changed[60:] += 500
    for model in (arima((0, 1, 1), (0, 0, 0, 0), False), smoothing(error="add")):
        first, second = model(noise, 60), model(changed, 60)
        # What comes later changes nothing before it.
        np.testing.assert_allclose(second[:61], first[:61], rtol=1e-6)
        # And the forecasts follow the series that they could not know when they were fitted.
        assert np.abs(second[70:] - changed[70:]).mean() == pytest.approx(
            np.abs(first[70:] - noise[70:]).mean(), 0.5
        )


def test_the_table_has_a_line_for_each_forecast(tmp_path: Path) -> None:
    months = np.arange(60) + np.datetime64("2000-01", "M")
    rows = [f"{month},{50 + k % 12}\n" for k, month in enumerate(months)]
    (tmp_path / "load.csv").write_text("month,load\n" + "".join(rows))
    lines = compare(tmp_path / "load.csv", (1, 2), epochs=1, threads=1)
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[0] for line in told] == ["load"] * 3
    assert told[0][1].startswith("gru, base ")
    assert [line[1] for line in told[1:]] == ["last value", "seasonal naive (12 steps)"]
    assert told[2][2] == "0"
