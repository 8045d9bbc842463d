"""Forecasts of a table: which base is chosen, errors beside the baselines', quantiles, the picture, the card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.cli.commands.tables import output_columns
from streamcell.client import Tensor
from streamcell.export import export_run, why_mute
from streamcell.models import ConfigError, Forecaster, SequenceData, TrainConfig, load_run, load_table, train
from streamcell.models.data.tables.options import TableOptions
from streamcell.models.training import presets
from streamcell.models.training.baselines import (
    LAST,
    MODEL,
    SEASONAL,
    Errors,
    ForecastReport,
    forecast_report,
)
from streamcell.models.training.fan import PATHS, sample_paths
from streamcell.models.training.forecast_base import choose_base, make_forecaster
from streamcell.models.training.losses import step_losses
from streamcell.models.training.setup import load_data


def write(path: Path, **columns: np.ndarray) -> Path:
    table = np.stack(list(columns.values()), axis=1)
    np.savetxt(path, table, delimiter=",", header=",".join(columns), comments="", fmt="%.6f")
    return path


def monthly(path: Path, values: np.ndarray) -> Path:
    months = np.arange(len(values)) + np.datetime64("1949-01", "M")
    path.write_text("month,load\n" + "".join(f"{m},{v:.5f}\n" for m, v in zip(months, values, strict=True)))
    return path


def config(path: Path, **given: Any) -> TrainConfig:
    settings: dict[str, Any] = {"model": presets.model("csv", "gru", hidden=8, dropout=0.0), "threads": 1}
    return presets.config("csv", data=path, out=path.parent / "run", **settings | given)


T = np.arange(180)
RNG = np.random.default_rng(3)
SERIES = {
    # Noise about a mean: nothing to add to.
    "value": RNG.normal(50, 3, 180),
    "change": 50 + 9 * np.sin(T / 9),
    "difference": np.cumsum(RNG.normal(2, 1, 180)) + 100,
    "season": 200 + 40 * np.sin(2 * np.pi * T / 12) + RNG.normal(0, 4, 180),
    "difference+season+log": np.exp(
        4 + np.cumsum(RNG.normal(0.01, 0.03, 180)) + 0.4 * np.sin(2 * np.pi * T / 12)
    ),
}


@pytest.mark.parametrize("name", SERIES)
def test_the_base_is_what_forecasts_the_training_part_best(name: str, tmp_path: Path) -> None:
    asked = config(monthly(tmp_path / "t.csv", SERIES[name]))
    base = choose_base(asked, load_data(asked))
    found = "value" if base is None else base.base + "+log" * base.log
    assert found.removesuffix("+log") == name.removesuffix("+log")
    assert found == name or not name.endswith("+log")


def test_an_untrained_forecaster_is_its_base_and_its_scalings_are_the_training_parts(tmp_path: Path) -> None:
    asked = config(monthly(tmp_path / "t.csv", SERIES["difference+season+log"]))
    data = load_data(asked)
    base = choose_base(asked, data)
    assert base is not None
    model = make_forecaster(asked, data, base).eval()
    report = forecast_report(model, data, base.base, 12)
    # Two steps of the walk in the base, twelve and their drift in the last season's value.
    assert report.ratio(SEASONAL) < 0.5
    (piece,) = data.train
    with torch.no_grad():
        features, *_ = model.lags(torch.from_numpy(piece.x)[None], model.initial_state(1)[-1].transpose(0, 1))
        scaled = model.inner.input_affine(features[:, base.history :])  # type: ignore[misc]
    torch.testing.assert_close(scaled.mean(dim=(0, 1)), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std(dim=(0, 1), correction=0), torch.ones(2), rtol=1e-4, atol=0)


def test_a_base_that_the_data_does_not_have_is_refused(tmp_path: Path) -> None:
    plain = write(tmp_path / "t.csv", load=SERIES["value"] - 50)
    for forecast, message in (
        ("season", "needs a season that the time axis does not tell: --season STEPS"),
        ("change+log", "needs training values above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(config(plain, forecast=forecast))
    for given, message in (
        ({"forecast": "trend"}, "forecast must be one of auto, value, change"),
        ({"quantiles": (0.9, 0.1)}, "quantiles must be increasing and between 0 and 1"),
        ({"dataset": "vowels", "data": None}, "can only be given for csv"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(config(plain), **given).check()


def test_errors_are_those_of_the_formulas(tmp_path: Path) -> None:
    values = np.stack([SERIES["season"], SERIES["change"]], axis=1)
    data = load_table(write(tmp_path / "t.csv", a=values[:, 0], b=values[:, 1]), ["b", "a"])
    asked = config(tmp_path / "t.csv", forecast="change", targets=("b", "a"))
    base = choose_base(asked, data)
    assert base is not None
    report = forecast_report(make_forecaster(asked, data, base).eval(), data, "change", 12)
    kept = np.float32(np.round(values, 6)).astype(float)
    start, end = 153, 180
    for place, column in enumerate((1, 0)):
        truth = kept[start:end, column]
        scale = np.abs(np.diff(kept[:125, column])).mean()
        for name, forecast in (
            (LAST, kept[start - 1 : end - 1, column]),
            (SEASONAL, kept[start - 12 : end - 12, column]),
            (MODEL, kept[start - 1 : end - 1, column] + np.diff(kept[:125, column]).mean()),
        ):
            error = forecast - truth
            mae = np.abs(error).mean()
            wanted = Errors(np.sqrt((error**2).mean()), mae, mae / scale)
            for key in ("rmse", "mae", "mase"):
                assert getattr(report.errors[name][place], key) == pytest.approx(
                    getattr(wanted, key), rel=1e-4
                )


def test_values_that_the_file_does_not_have_are_neither_learned_nor_judged(tmp_path: Path) -> None:
    lines = (monthly(tmp_path / "t.csv", SERIES["season"])).read_text().splitlines()
    for row in (10, 40, 170):
        lines[row] = lines[row].partition(",")[0] + ","
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = load_table(tmp_path / "t.csv", (), TableOptions(gaps="forward"))
    assert [data.part(part)[0].asked(data.distribution) for part in ("train", "valid", "test")] == [
        122,
        28,
        26,
    ]
    y, target = torch.zeros(1, 2, 2), torch.tensor([[[3.0, float("nan")], [float("nan")] * 2]])
    assert step_losses(y, target, "real").tolist() == [[9.0, 0.0]]
    result = train(config(tmp_path / "t.csv", table=TableOptions(gaps="mask"), epochs=2, targets=("load",)))
    assert np.isfinite(result.test_loss)
    assert load_run(result.folder)[1]["data"]["masks"] == ["load missing"]


def test_pinball_losses_are_those_of_the_formula() -> None:
    y = torch.tensor([[[1.0, 2.0, 4.0, 10.0, 10.0, 10.0]]])
    target = torch.tensor([[[3.0, 10.0]]])
    losses = step_losses(y, target, "quantiles", torch.tensor([2.0, 1.0]), (0.1, 0.5, 0.9))
    # ρ_q(u) = u·(q − 1[u < 0]): 0.1·2, 0.5·1, 0.1·1, in units of 2; the second target is met.
    assert losses.item() == pytest.approx((0.2 + 0.5 + 0.1) / 3 / 2 / 2)


def report(model: float, last: float) -> ForecastReport:
    errors = {MODEL: (Errors(model, model, model),), LAST: (Errors(last, last, last),)}
    return ForecastReport(("load",), 0, "value", errors, (model,), {})


def test_a_model_that_loses_is_named() -> None:
    assert report(2.0, 1.0).beaten_by == (LAST,)
    assert report(1.0, 2.0).beaten_by == ()


def run(path: Path, *more: str) -> str:
    fixed = [
        "train",
        "csv",
        "--model",
        "gru",
        "--hidden",
        "8",
        "--threads",
        "1",
        "--epochs",
        "3",
        "--overwrite",
    ]
    done = CliRunner().invoke(app, [*fixed, "--data", str(path), "--out", str(path.parent / "run"), *more])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_the_command_line_tells_what_the_model_is_worth(tmp_path: Path) -> None:
    # A random walk, which nothing foretells better than its last value, and a model that is not told so.
    walk = np.cumsum(np.random.default_rng(0).normal(0, 1, 200)) + 500
    told = run(monthly(tmp_path / "t.csv", walk), "--forecast", "value")
    for word in ("RMSE", "MAE", "MASE", "last value", "seasonal naive (12 steps)", "1 month a row"):
        assert word in told
    assert "warning: the model is worse than the last value, which needs no model" in told
    assert load_run(tmp_path / "run")[1]["training"]["result"]["forecast"]["beaten_by"][0] == LAST
    told = run(monthly(tmp_path / "t.csv", SERIES["difference+season+log"]))
    assert "base: difference+season" in told
    assert "warning" not in told
    assert (tmp_path / "run" / "forecast.png").read_bytes().startswith(b"\x89PNG")


def test_quantiles_are_forecast_and_their_shares_told(tmp_path: Path) -> None:
    told = run(monthly(tmp_path / "t.csv", SERIES["season"]), "--quantiles", "0.1,0.5,0.9", "--epochs", "30")
    assert "below quantile 0.1" in told
    model, document = load_run(tmp_path / "run")
    assert (model.input_size, model.output_size, model.distribution) == (1, 3, "quantiles")
    below = document["training"]["result"]["forecast"]["below"]
    assert 0 <= below["0.1"] < below["0.5"] < below["0.9"] <= 1
    card = export_run(tmp_path / "run", tmp_path / "m.onnx")
    assert card.generation is None
    said = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--out", str(tmp_path / "again.onnx")])
    assert "cannot continue it by itself: it gives quantiles" in said.output
    assert "train without --quantiles" in said.output
    assert card.signature.outputs[0].step_shape == (3,)
    assert card.training["data"]["outputs"] == ["load 0.1", "load 0.5", "load 0.9"]
    outputs = [Tensor("y", "float32", (3,))]
    assert output_columns(outputs, {"training": card.training}).names == ("load 0.1", "load 0.5", "load 0.9")


def test_a_forecast_of_whole_rows_generates_and_others_do_not(tmp_path: Path) -> None:
    two = write(tmp_path / "t.csv", a=SERIES["season"], b=SERIES["change"])
    run(two)
    card = export_run(tmp_path / "run", tmp_path / "m.onnx")
    assert card.generation is not None
    assert (card.generation.head, card.generation.input, card.generation.output) == ("real", "x", "y")
    result = card.training["training"]["result"]
    assert list(card.generation.deviation) == result["forecast"]["deviation"]  # type: ignore[arg-type]
    assert why_mute(card.training) is None
    run(two, "--target", "a")
    card = export_run(tmp_path / "run", tmp_path / "m.onnx")
    assert card.generation is None
    assert "train without --target" in str(why_mute(card.training))


def test_the_card_has_the_columns_and_the_step_of_time(tmp_path: Path) -> None:
    run(monthly(tmp_path / "t.csv", SERIES["season"]))
    data = export_run(tmp_path / "run", tmp_path / "m.onnx").training["data"]
    assert (data["columns"], data["targets"], data["source"]) == (["load"], ["load"], "t.csv")
    assert data["time"] == {
        "columns": "month",
        "step": "1 month",
        "regular": True,
        "first": "1949-01-01",
        "last": "1963-12-01",
        "season": 12,
    }


def test_sampled_paths_spread_as_the_deviation_says(tmp_path: Path) -> None:
    asked = config(write(tmp_path / "t.csv", a=SERIES["change"]), forecast="change")
    data: SequenceData = load_data(asked)
    base = choose_base(asked, data)
    assert base is not None
    model = make_forecaster(asked, data, base)
    assert isinstance(model, Forecaster)
    paths = sample_paths(model, data.test[0].x[:9], 16, np.array([2.0], np.float32))
    assert paths.shape == (PATHS, 16, 1)
    # A walk of independent steps: its deviation grows with the root of the steps.
    assert paths[:, 0, 0].std() == pytest.approx(2.0, rel=0.2)
    assert paths[:, 15, 0].std() == pytest.approx(8.0, rel=0.2)
