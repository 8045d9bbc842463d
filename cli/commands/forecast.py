"""How the terminal shows what a forecast is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from streamcell.models.training.baselines import ForecastReport

# Targets that are shown one by one; config.json has all.
MOST = 6


def forecast_table(report: ForecastReport) -> Table:
    """Errors on the test part in raw units, the model's beside the baselines'."""
    table = Table(box=None, title=f"one step ahead, test part (base: {report.base})", title_justify="left")
    for heading in ("target", "forecast", "RMSE", "MAE", "MASE"):
        table.add_column(heading, justify="left" if heading in ("target", "forecast") else "right")
    for place, target in enumerate(report.targets[:MOST]):
        for number, (name, errors) in enumerate(report.errors.items()):
            one = errors[place]
            told = f"{name} ({report.season} steps)" if name == "seasonal naive" else name
            shown = ("–" if value is None else f"{value:.4g}" for value in (one.rmse, one.mae, one.mase))
            table.add_row("" if number else escape(target), told, *shown)
    if len(report.targets) > MOST:
        table.add_row(f"… and {len(report.targets) - MOST} more in config.json")
    for level, share in report.below.items():
        table.add_row(f"below quantile {level}", f"{share:.1%} of test values")
    return table


def warnings_of(report: ForecastReport) -> list[str]:
    """What the user should know before serving the model."""
    return [
        f"the model is worse than the {name}, which needs no model: its RMSE is {report.ratio(name):.2f} times as large"
        for name in report.beaten_by
    ]
