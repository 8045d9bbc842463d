"""The gradient of a loss at the last timestep with respect to the state of every earlier one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from streamcell.models import GRULayer, LSTMLayer, RecurrentLayer, RNNLayer

from .settings import Settings

INPUTS = 8


def _grown(units: int) -> RNNLayer:
    layer = RNNLayer(INPUTS, units, nonlinearity="relu")
    with torch.no_grad():
        layer.weight_hh.mul_(2.0)
    return layer


def _lstm(forget_bias: float) -> Callable[[int], LSTMLayer]:
    def make(units: int) -> LSTMLayer:
        layer = LSTMLayer(INPUTS, units)
        with torch.no_grad():
            layer.bias[units : 2 * units] = forget_bias
        return layer

    return make


# Untrained layers; recurrent weights are orthogonal unless stated otherwise.
LAYERS: dict[str, Callable[[int], RecurrentLayer]] = {
    "RNN (tanh), uniform ±1/√H": lambda units: RNNLayer(INPUTS, units, recurrent_init="uniform"),
    "RNN (tanh)": lambda units: RNNLayer(INPUTS, units),
    "RNN (relu), weights doubled": _grown,
    "LSTM, forget bias 0": _lstm(0.0),
    "LSTM, forget bias 1": _lstm(1.0),
    "LSTM, forget bias 3": _lstm(3.0),
    "GRU": lambda units: GRULayer(INPUTS, units),
}


@dataclass(frozen=True)
class Followed:
    """One kind of layer at one length.

    Attributes:
        layer: its name in `LAYERS`.
        length: timesteps.
        norms: the gradient's norm 1, 2, … `length` − 1 steps back, in units of its norm at the last step: geometric
            means over sequences and initialisations.
    """

    layer: str
    length: int
    norms: tuple[float, ...]


def follow(settings: Settings) -> list[Followed]:
    """Every kind of layer at every length."""
    return [
        Followed(name, length, _norms(make, length, settings))
        for name, make in LAYERS.items()
        for length in settings.time_lengths
    ]


def _norms(make: Callable[[int], RecurrentLayer], length: int, settings: Settings) -> tuple[float, ...]:
    logs = torch.zeros(length, dtype=torch.float64)
    for seed in settings.time_seeds:
        torch.manual_seed(seed)
        layer = make(settings.time_units).double()
        logs += _log_norms(layer, length, settings.time_rows) / len(settings.time_seeds)
    relative = torch.exp(logs - logs[0])
    return tuple(relative[1:].tolist())


def _log_norms(layer: RecurrentLayer, length: int, rows: int) -> torch.Tensor:
    """Mean log norm of ∂loss/∂state, 0, 1, … steps back; float64[length].

    The loss of a row is its last output times a fixed random vector. The state of a timestep is all that it hands
    on (an LSTM's h and c together).
    """
    x = torch.randn(rows, length, INPUTS, dtype=torch.float64)
    towards = torch.randn(layer.hidden_size, dtype=torch.float64)
    states = tuple(x.new_zeros(rows, layer.hidden_size) for _ in layer.state_names)
    seen = []
    for step in x.unbind(1):
        _, states = layer.scan(step[:, None], states)
        # A copy: the gradient is of what is handed on, not of what else the step made of it.
        seen.append(torch.cat(states, dim=1))
        states = seen[-1].chunk(len(states), dim=1)
    loss = (states[0] @ towards).sum()
    gradients = torch.autograd.grad(loss, seen)
    norms = torch.stack([gradient.norm(dim=1) for gradient in reversed(gradients)])
    return norms.clamp(min=1e-300).log().mean(dim=1)
