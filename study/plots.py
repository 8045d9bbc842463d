"""The study's pictures, as PNGs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .adding import CHANCE, WINDOW, Run
from .depth import Deep
from .through_time import Followed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 80


def time_plot(followed: Sequence[Followed]) -> bytes:
    """Gradient norms against steps back, of the longest sequences."""
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    longest = max(f.length for f in followed)
    for one in followed:
        if one.length == longest:
            norms = np.array(one.norms)
            axes.plot(np.arange(1, len(norms) + 1), np.where(norms > 0, norms, np.nan), label=one.layer)
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    axes.set(
        xlabel="steps back from the loss",
        ylabel="gradient norm, relative",
        yscale="log",
        ylim=(1e-40, 1e30),
        title=f"What reaches earlier states, fresh layers, T = {longest}",
    )
    axes.legend(fontsize=8, loc="lower left")
    return _png(figure)


def adding_plot(runs: Sequence[Run]) -> bytes:
    """Training error against updates, a panel a length."""
    lengths = sorted({run.setting.length for run in runs})
    figure = _figure(11, 3.6)
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    models = list(dict.fromkeys(run.setting.model for run in runs))
    for axes, length in zip(panels, lengths, strict=True):
        for run in runs:
            if run.setting.length != length:
                continue
            clip = run.setting.clip
            axes.plot(
                _smooth(run.losses),
                color=f"C{models.index(run.setting.model)}",
                linestyle="-" if clip is not None else ":",
                linewidth=1.2,
                label=f"{run.setting.model}, {'clipped' if clip is not None else 'not clipped'}",
            )
        axes.axhline(CHANCE, color="0.6", linewidth=0.8)
        axes.set(xlabel="updates", yscale="log", ylim=(5e-4, 3), title=f"T = {length}")
    panels[0].set(ylabel="mean square error")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    return _png(figure)


def depth_plot(deep: Sequence[Deep]) -> bytes:
    """First block's gradient over the last's before training, and the loss after it, against depth."""
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for kind in dict.fromkeys(one.kind for one in deep):
        of = [one for one in deep if one.kind == kind]
        depths = [one.depth for one in of]
        left.plot(depths, [one.first for one in of], marker="o", label=kind)
        right.plot(depths, [max(one.loss, 1e-7) for one in of], marker="o", label=kind)
    left.set(ylabel="first block's gradient / last block's", title="before training")
    right.set(ylabel="training cross-entropy, nats", title="after training")
    for axes in (left, right):
        axes.set(xlabel="blocks", xscale="log", yscale="log")
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.minorticks_off()
    left.legend(fontsize=8)
    return _png(figure)


def _smooth(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    width = min(WINDOW, len(values))
    return np.convolve(values, np.ones(width) / width, mode="valid")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
