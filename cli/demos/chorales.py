"""The demo `chorales`: a forecast after every timestep, measured with many sessions at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .base import Demo, Options, Report

if TYPE_CHECKING:
    from streamcell.models import TrainConfig

# About a minute on two cores.
EPOCHS = 60


def settings(out: Path, options: Options) -> TrainConfig:
    """How the demos that stream chorales train their model."""
    from streamcell.models.training.presets import CHORALES_MINUTE

    return replace(CHORALES_MINUTE, out=out, data_folder=options.data_folder, **options.training(EPOCHS))


def run(folder: Path, options: Options) -> Report:
    """Train an LSTM on Bach's chorales, export it, serve it, stream held-out pieces and measure."""
    from streamcell.cli.demos.shared.measure import measure
    from streamcell.cli.demos.shared.prepare import prepare
    from streamcell.cli.demos.shared.report import write_report

    console = options.console
    trained = prepare(settings(folder, options), "chorales", retrain=options.retrain, console=console)
    console.print(f"streaming {len(trained.test)} held-out pieces through {options.sessions} sessions …")
    measured = measure(trained, sessions=options.sessions, passes=options.passes)
    return write_report(folder, trained, measured)


DEMO = Demo(
    "chorales",
    "many-to-many, aligned",
    "Bach's chorales: an LSTM predicts the next chord after every quarter note; throughput and latency",
    run,
    Path("runs/demo"),
)
