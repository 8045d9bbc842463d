"""The chorales demo's figures, and a picture of its predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamcell.cli.demos.base import Report

from .measure import Measured
from .prepare import Trained

_LOWEST = 21  # MIDI pitch of the first of the 88 keys
_SHOWN_STEPS = 96


def write_report(out: Path, trained: Trained, measured: Measured) -> Report:
    """Write `report.json` and `piano_roll.png` into `out`."""
    longest = max(range(len(trained.test)), key=lambda index: len(trained.test[index]))
    roll = out / "piano_roll.png"
    _piano_roll(roll, trained.test[longest].y, measured.logits[longest])
    files = {"loss curve": trained.loss_plot, "piano roll": roll, "exported model": trained.path}
    figures = {"loss_torch": trained.loss, **measured.figures}
    rows = [
        ("test loss in PyTorch", f"{figures['loss_torch']:.6f} nats per timestep"),
        ("test loss, served", f"{figures['loss_served']:.6f} nats per timestep"),
        ("sessions, timesteps", f"{figures['sessions']}, {figures['steps']}"),
        ("steps per second", f"{figures['steps_per_s']:.0f}"),
        ("latency p50, p99", f"{figures['p50_ms']:.2f} ms, {figures['p99_ms']:.2f} ms"),
        ("mean batch (server's /metrics)", f"{figures['mean_batch']:.1f} sessions per run"),
        ("server CPU per step", f"{figures['server_cpu_us_per_step']:.0f} µs"),
    ]
    return Report("Bach's chorales, served", rows, figures, files).save(out)


def _piano_roll(path: Path, truth: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
    """Draw the score, [time, 88], above the probabilities that the server predicted for it one step ahead."""
    from matplotlib.figure import Figure

    truth, logits = truth[:_SHOWN_STEPS], logits[:_SHOWN_STEPS]
    keys = np.flatnonzero(truth.any(axis=0))
    low, high = keys.min() - 3, keys.max() + 4
    extent = (0.0, float(len(truth)), low + _LOWEST - 0.5, high + _LOWEST - 0.5)
    figure = Figure(figsize=(10, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes, values, title in (
        (above, truth, "the score"),
        (below, 1 / (1 + np.exp(-logits)), "the served model's prediction, one quarter note ahead"),
    ):
        image = axes.imshow(
            values[:, low:high].T,
            origin="lower",
            aspect="auto",
            extent=extent,
            vmin=0,
            vmax=1,
            cmap="magma",
            interpolation="nearest",
        )
        axes.set(ylabel="MIDI pitch", title=title)
    below.set(xlabel="quarter notes")
    figure.colorbar(image, ax=[above, below], label="probability")
    figure.savefig(path, dpi=120)
