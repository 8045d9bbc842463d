"""The demo `chorales`: a forecast after every timestep, measured with many sessions at once."""

from __future__ import annotations

from pathlib import Path

from .base import Demo, Options, Report

# About a minute on two cores.
EPOCHS = 60


def run(folder: Path, options: Options) -> Report:
    """Train an LSTM on Bach's chorales, export it, serve it, stream held-out pieces and measure."""
    from streamcell.cli.demos.shared.measure import measure
    from streamcell.cli.demos.shared.prepare import prepare
    from streamcell.cli.demos.shared.report import write_report
    from streamcell.models.training import presets

    console = options.console
    config = presets.config(
        "chorales", out=folder, data_folder=options.data_folder, **options.training(EPOCHS)
    )
    trained = prepare(config, "chorales", retrain=options.retrain, console=console)
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
