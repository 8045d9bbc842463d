"""A picture of a forecast: the end of the test part and the model's forecast of it."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.data.sequences import SequenceData

from .baselines import ForecastReport, outputs_of, point_forecast

# Steps ahead, steps before them to show, sampled paths, targets to draw.
AHEAD, BEFORE, PATHS, MOST = 36, 72, 200, 4
# Of the paths, as the picture shades them.
BANDS = ((0.05, 0.95), (0.25, 0.75))


@torch.no_grad()
def sample_paths(
    model: SequenceModel, x: NDArray[np.float32], steps: int, deviation: NDArray[np.float32], *, seed: int = 0
) -> NDArray[np.float32]:
    """Possible continuations of x, if each output is the next input, as the server generates with temperature 1.

    Args:
        x: float32[time, features], the timesteps before; y has the same features.
        deviation: float32[features] of an output about the truth.

    Returns:
        float32[PATHS, steps, features].
    """
    generator = torch.Generator().manual_seed(seed)
    device = model.head.weight.device
    spread = torch.from_numpy(deviation).to(device)
    y, *state = model.eval()(torch.from_numpy(x)[None].to(device))
    state = [tensor.repeat_interleave(PATHS, dim=model.state_axis) for tensor in state]
    last = y[:, -1:].expand(PATHS, 1, -1)
    paths = []
    for step in range(steps):
        noise = torch.randn(last.shape, generator=generator).to(device)
        value = last + spread * noise
        paths.append(value)
        if step + 1 < steps:
            last, *state = model(value, *state)
    return np.asarray(torch.cat(paths, dim=1).cpu().numpy(), np.float32)


def forecast_plot(model: SequenceModel, data: SequenceData, report: ForecastReport) -> bytes:
    """A PNG of the first targets at the end of the test part.

    A model whose outputs are its inputs forecasts the last steps without seeing them: the median and a fan of sampled
    paths. For other models: forecasts of one step each; with quantiles, a band between the outer ones.
    """
    from matplotlib.figure import Figure

    (test,) = data.test
    shown = min(len(report.targets), MOST)
    ahead = min(AHEAD, max(1, test.asked(data.distribution)))
    figure = Figure(figsize=(9, 2.6 * shown + 0.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(shown, 1, sharex=True))
    truth = np.concatenate([test.x[1:, data.targets], test.y[-1:]])
    first = max(len(truth) - ahead - BEFORE, 0)
    steps, future = np.arange(first, len(truth)), np.arange(len(truth) - ahead, len(truth))
    feeds_back = data.targets == tuple(range(data.input_size)) and not data.quantiles
    if feeds_back:
        spread = np.asarray(report.deviation, np.float32)
        paths = sample_paths(model, test.x[: len(truth) - ahead + 1], ahead, spread)
        title = f"{ahead} steps ahead, {PATHS} sampled paths"
    else:
        y, point = outputs_of(model, test), point_forecast(model, data, test)
        title = "one step ahead"
    for place, axis in enumerate(axes[:shown]):
        axis.plot(steps, truth[first:, place], color="0.3", label="truth")
        if feeds_back:
            for low, high in BANDS:
                band = np.quantile(paths[:, :, place], (low, high), axis=0)
                axis.fill_between(future, *band, alpha=0.2, color="C0", label=f"{low:.0%} to {high:.0%}")
            axis.plot(future, np.median(paths[:, :, place], axis=0), color="C0", label="median")
        else:
            axis.plot(steps, point[first:, place], color="C0", label="forecast")
            if data.quantiles:
                own = y[first:, place * len(data.quantiles) : (place + 1) * len(data.quantiles)]
                told = f"{data.quantiles[0]:.0%} to {data.quantiles[-1]:.0%}"
                axis.fill_between(steps, own[:, 0], own[:, -1], alpha=0.2, color="C0", label=told)
        axis.set(ylabel=report.targets[place])
        axis.grid(alpha=0.3)
    axes[0].set(title=title)
    axes[0].legend()
    axes[-1].set(xlabel="timestep of the test part")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
