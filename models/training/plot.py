"""The curve of a run: losses and the gradient's norm over epochs, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

from .run_folder import Row


def loss_plot(rows: Sequence[Row], best_epoch: int, *, title: str, clip_norm: float) -> bytes:
    """A PNG of training and validation loss above, gradient norm before clipping and its bound below.

    The epoch whose weights were kept is marked.
    """
    from matplotlib.figure import Figure

    epochs = [row.epoch for row in rows]
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.plot(epochs, [row.train_loss for row in rows], label="training (with dropout)")
    above.plot(epochs, [row.valid_loss for row in rows], label="validation")
    best = rows[best_epoch - 1]
    above.plot([best.epoch], [best.valid_loss], "o", color="C1", label=f"best: {best.valid_loss:.3f}")
    above.set(ylabel="loss per timestep", title=title)
    above.legend()
    below.plot(epochs, [row.grad_norm for row in rows], color="C2", label="gradient norm")
    below.axhline(clip_norm, color="0.5", linestyle="--", label="clipping threshold")
    below.set(xlabel="epoch", ylabel="global norm", yscale="log")
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
