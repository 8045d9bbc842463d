"""CSV files as packages carry them: trained, exported, served and streamed, with at most one option each."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.models import TrainConfig, load_run
from streamcell.models.data.tables.table import read_table
from streamcell.models.training.setup import load_data
from tests.support.csv_packages import csv_of

STATS, SKTIME, PLOTS = "statsmodels/datasets", "sktime/datasets/data", "matplotlib/mpl-data/sample_data"
# name → package, file, option, step of the time axis.
FILES = {
    "airline": ("sktime", f"{SKTIME}/Airline/Airline.csv", "", "1 month"),
    "scripts": ("sktime", f"{SKTIME}/PBS_dataset/PBS_dataset.csv", "", "1 month"),
    "us": ("sktime", f"{SKTIME}/Uschange/Uschange.csv", "", "3 months"),
    "solar": ("sktime", f"{SKTIME}/solar/solar.csv", "", "30 minutes"),
    "lynx": ("sktime", f"{SKTIME}/Lynx/Lynx.csv", "", "1"),
    "msft": ("matplotlib", f"{PLOTS}/msft.csv", "--gaps forward", "1 business day"),
    "stocks": ("matplotlib", f"{PLOTS}/Stocks.csv", "--gaps mask", "4 weeks"),
    "sunspots": ("statsmodels", f"{STATS}/sunspots/sunspots.csv", "", "1"),
    "co2": ("statsmodels", f"{STATS}/co2/co2.csv", "--gaps linear", "1 week"),
    "elnino": ("statsmodels", f"{STATS}/elnino/src/elnino.dat", "", "1 month"),
    "danish": ("statsmodels", f"{STATS}/danish_data/data.csv", "", "3 months"),
    "weather": ("vega_datasets", "vega_datasets/_data/seattle-weather.csv", "--categories one-hot", "1 day"),
    "sp500": ("arch", "arch/data/sp500/sp500.csv.gz", "--time none", None),
}


def command(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("csv")


@pytest.fixture(scope="module")
def made(folder: Path) -> Callable[[str], str]:
    """Trains and exports a file once; returns what the training said."""

    @cache
    def make(name: str) -> str:
        package, path, option, _ = FILES[name]
        data = csv_of(package, path, folder)
        quick = ["--model", "gru", "--hidden", "8", "--epochs", "2", "--threads", "1"]
        told = command(
            "train", "csv", "--data", str(data), "--out", str(folder / name), *option.split(), *quick
        )
        command("export", str(folder / name), "--out", str(folder / "models" / f"{name}.onnx"))
        return told

    return make


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_trained_and_exported_and_the_report_is_honest(
    name: str, folder: Path, made: Callable[[str], str]
) -> None:
    step = FILES[name][3]
    told = made(name)
    document = load_run(folder / name)[1]
    found = document["data"]["time"]
    assert (None if found is None else found["step"]) == step
    forecast = document["training"]["result"]["forecast"]
    rmse = {who: [one["rmse"] for one in errors] for who, errors in forecast["errors"].items()}
    assert {"model", "last value"} <= rmse.keys()
    for baseline in rmse.keys() - {"model"}:
        tiny = np.finfo(float).tiny
        own, other = (np.log(np.maximum(rmse[who], tiny)) for who in ("model", baseline))
        loses = np.mean(own - other) > 0
        assert (baseline in forecast["beaten_by"]) == loses
        assert (f"the model is worse than the {baseline}" in told) == loses


def test_the_served_models_take_and_give_raw_values(
    folder: Path, made: Callable[[str], str], start_server: Callable[..., ServerProcess]
) -> None:
    for name in FILES:
        made(name)
    server = start_server(folder / "models")
    # The command takes the file itself: the model's columns by their names, without the time.
    for name in ("airline", "sunspots", "us"):
        file = folder / Path(FILES[name][1]).name
        done = CliRunner().invoke(app, ["stream", name, str(file), "--target", server.target])
        assert done.exit_code == 0, done.output
        names_line, *rows = csv.reader(io.StringIO(done.stdout))
        model, document = load_run(folder / name)
        assert names_line == document["data"]["targets"]
        table = read_table(file)
        with torch.no_grad():
            wanted = model(torch.from_numpy(table.values)[None])[0][0].numpy()
        np.testing.assert_allclose(
            np.array(rows, np.float32), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max()
        )
        ahead = CliRunner().invoke(
            app, ["stream", name, str(file), "--generate", "3", "--target", server.target]
        )
        assert ahead.exit_code == 0, ahead.output
        names_line, *rows = csv.reader(io.StringIO(ahead.stdout))
        assert names_line == document["data"]["columns"]
        np.testing.assert_allclose(np.array(rows[0], np.float32), wanted[-1], rtol=1e-4)
        assert len(rows) == 3
    with connect(server.target) as client, contextlib.ExitStack() as stack:
        for name in FILES:
            model, document = load_run(folder / name)
            x = load_data(TrainConfig.from_json(document["training"])).test[0].x[-60:]
            with torch.no_grad():
                wanted = model(torch.from_numpy(x)[None])[0][0].numpy()
            session = stack.enter_context(client.session(name))
            given = np.concatenate([session.run(x[:40]), *(session.run(row[None]) for row in x[40:])])
            np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
            if client.model(name).generation is not None:
                steps = session.generate(6).all().fed
                # Each forecast is the next input.
                np.testing.assert_array_equal(steps[0], given[-1])
                assert np.isfinite(steps).all()
