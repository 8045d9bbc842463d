"""The preset of CSV files beats the last value on series of the literature, without an option."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamcell.models import train
from streamcell.models.training import presets
from streamcell.models.training.baselines import LAST
from tests.support.csv_packages import csv_of

HOURLY = "eemeter/eemeter/samples/uk-electricity-hdd-only-hourly-sample-0.csv.gz"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "path", "epochs"),
    [
        ("sktime", "sktime/datasets/data/Airline/Airline.csv", 100),
        ("statsmodels", "statsmodels/datasets/sunspots/sunspots.csv", 100),
        # A tenth of the preset's epochs: 23,508 rows.
        ("eemeter", HOURLY, 10),
    ],
)
def test_the_preset_beats_the_last_value(package: str, path: str, epochs: int, tmp_path: Path) -> None:
    file = csv_of(package, path, tmp_path)
    report = train(presets.config("csv", data=file, out=tmp_path / "run", epochs=epochs, threads=1)).forecast
    assert report is not None
    assert report.ratio(LAST) < 0.95
    assert report.beaten_by == ()
