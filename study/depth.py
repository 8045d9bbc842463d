"""Perceptrons over depth: what reaches the first layer of a fresh one, and what training makes of two spirals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcell.models import MLP, build

from .settings import Settings

TURNS = 1.5
RATE = 3e-3
# In place of a norm of 0, as in a network whose ReLUs are all off.
TINY = 1e-300


@dataclass(frozen=True)
class Kind:
    """One kind of perceptron: its activation, whether its blocks add their input, and how its weights begin."""

    activation: str
    residual: bool
    init: str


# Each begins as its authors advise; a residual block as torch's linear layer does, so that the sum of many
# blocks stays moderate.
KINDS: dict[str, Kind] = {
    "sigmoid": Kind("sigmoid", False, "glorot"),  # Glorot & Bengio (2010)
    "ReLU": Kind("relu", False, "he"),  # He et al. (2015)
    "residual ReLU": Kind("relu", True, "default"),  # He et al. (2016)
}


@dataclass(frozen=True)
class Deep:
    """One kind at one depth, means over seeds.

    Attributes:
        kind: its name in `KINDS`.
        depth: blocks between input and head.
        first: norm of the gradient on the first block's weights over that on the last block's, before training;
            a geometric mean.
        loss: cross-entropy on the training points after training, in nats.
        accuracy: share of them on the right side.
    """

    kind: str
    depth: int
    first: float
    loss: float
    accuracy: float


def deepen(settings: Settings) -> list[Deep]:
    """Every kind at every depth."""
    return [_deep(name, depth, settings) for name in KINDS for depth in settings.depth_depths]


def spirals(points: int) -> tuple[Tensor, Tensor]:
    """Two spirals wound into each other: x float32[1, points, 2] within ±1, and which of them, int64[points]."""
    label = torch.arange(points) % 2
    along = torch.sqrt(torch.rand(points))
    angle = 2 * math.pi * TURNS * along + math.pi * label
    x = torch.stack([along * torch.cos(angle), along * torch.sin(angle)], dim=1)
    return (x + 0.01 * torch.randn(points, 2))[None], label


def _deep(name: str, depth: int, settings: Settings) -> Deep:
    ratios, losses, rights = [], [], []
    for seed in settings.depth_seeds:
        torch.manual_seed(seed)
        x, label = spirals(settings.depth_points)
        model = _make(KINDS[name], depth, settings.depth_units)
        _loss(model, x, label).backward()  # type: ignore[no-untyped-call]
        ratios.append(max(_norm(model, 0), TINY) / max(_norm(model, -1), TINY))
        optimiser = torch.optim.Adam(model.parameters(), RATE)
        for _ in range(settings.depth_updates):
            optimiser.zero_grad()
            _loss(model, x, label).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            said, *_ = model(x)
            losses.append(float(F.cross_entropy(said[0], label)))
            rights.append(float((said[0].argmax(1) == label).float().mean()))
    count = len(settings.depth_seeds)
    first = math.exp(sum(map(math.log, ratios)) / count)
    return Deep(name, depth, first, sum(losses) / count, sum(rights) / count)


def _make(kind: Kind, depth: int, units: int) -> MLP:
    model = build(
        {
            "kind": "mlp",
            "input_size": 2,
            "hidden_sizes": [units] * (depth + 1),
            "output_size": 2,
            "activation": kind.activation,
            "residual": kind.residual,
        }
    )
    assert isinstance(model, MLP)
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear) and kind.init != "default":
            if kind.init == "he":
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def _loss(model: MLP, x: Tensor, label: Tensor) -> Tensor:
    said, *_ = model(x)
    return F.cross_entropy(said[0], label)


def _norm(model: MLP, block: int) -> float:
    """Norm of the gradient on a square block's weights; the first block maps 2 numbers and is not counted."""
    blocks = list(model.blocks)[1:]
    gradient = blocks[block].linear.weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, Tensor)
    return float(gradient.double().norm())
