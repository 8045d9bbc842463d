"""The adding problem (Hochreiter & Schmidhuber 1997): add the two marked numbers of a long sequence."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from streamcell.models import SequenceModel, build

from .settings import Settings

# What always saying 1 comes to: the variance of the sum of two uniform numbers.
CHANCE = 1 / 6
# A run has learned the problem where its test error is below this, and ends where its training error is below that.
LEARNED = 0.01
DONE = 0.002
CLIP = 1.0
WINDOW = 20
# Rates that served in short probes; a plain recurrent network wants small steps.
RATES = {"RNN": 0.001, "IRNN": 0.001, "LSTM": 0.01, "GRU": 0.01}
MODELS: dict[str, dict[str, object]] = {
    "RNN": {"kind": "rnn"},
    "IRNN": {"kind": "rnn", "nonlinearity": "relu", "recurrent_init": "identity"},
    "LSTM": {"kind": "lstm"},
    "GRU": {"kind": "gru", "reset_after": True},
}


@dataclass(frozen=True)
class Setting:
    """One run: which model, how long the sequences, what bound on the gradient's norm (None: none), which seed."""

    model: str
    length: int
    clip: float | None
    seed: int


@dataclass(frozen=True)
class Run:
    """What a run gave.

    Attributes:
        setting: what was run.
        losses: training error (mean square) of each update.
        norms: the gradient's global norm at each update, before clipping.
        test: mean square error on fresh sequences; NaN where training left the finite numbers.
        elapsed_s: seconds it took.
    """

    setting: Setting
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    test: float
    elapsed_s: float

    @property
    def learned(self) -> bool:
        """Whether the test error is below `LEARNED`."""
        return self.test < LEARNED

    @property
    def first_below(self) -> int | None:
        """The update at which the training error, averaged over the last 20, first was below `LEARNED`."""
        total = 0.0
        for update, loss in enumerate(self.losses):
            total += loss - (self.losses[update - WINDOW] if update >= WINDOW else 0.0)
            if update >= WINDOW - 1 and total / WINDOW < LEARNED:
                return update + 1
        return None


def settings_of(settings: Settings) -> list[Setting]:
    """All runs, the longest sequences first, so that two processes end at about the same time."""
    return [
        Setting(model, length, clip, seed)
        for length in sorted(settings.adding_lengths, reverse=True)
        for model in MODELS
        for clip in (None, CLIP)
        for seed in settings.adding_seeds
    ]


def draw(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """x float32[rows, length, 2]: numbers from [0, 1), and marks, one in each half; y float32[rows]: the sum."""
    numbers = torch.rand(rows, length)
    marks = torch.zeros(rows, length)
    half = length // 2
    first, second = torch.randint(0, half, (rows,)), torch.randint(half, length, (rows,))
    every = torch.arange(rows)
    marks[every, first] = 1
    marks[every, second] = 1
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(1)


def run(setting: Setting, settings: Settings) -> Run:
    """Train with Adam until the problem is learned or the updates are spent."""
    began_s = time.monotonic()
    torch.manual_seed(setting.seed)
    model = build(
        {
            "input_size": 2,
            "hidden_size": settings.adding_units,
            "output_size": 1,
            **MODELS[setting.model],
        }
    )
    optimiser = torch.optim.Adam(model.parameters(), RATES[setting.model])
    losses: list[float] = []
    norms: list[float] = []
    for _ in range(settings.adding_updates):
        x, y = draw(settings.adding_rows, setting.length)
        loss = _error(model, x, y)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        bound = math.inf if setting.clip is None else setting.clip
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), bound)))
        losses.append(float(loss.detach()))
        recent = losses[-WINDOW:]
        if not math.isfinite(norms[-1]) or (len(recent) == WINDOW and sum(recent) < DONE * WINDOW):
            break
        optimiser.step()
    return Run(
        setting, tuple(losses), tuple(norms), _test(model, setting, settings), time.monotonic() - began_s
    )


def _error(model: SequenceModel, x: Tensor, y: Tensor) -> Tensor:
    """Mean square error of what the model says after the last timestep."""
    said, *_ = model(x)
    error: Tensor = (said[:, -1, 0] - y).square().mean()
    return error


@torch.no_grad()
def _test(model: SequenceModel, setting: Setting, settings: Settings) -> float:
    torch.manual_seed(10_000 + setting.seed)
    return float(_error(model, *draw(settings.adding_test, setting.length)))
