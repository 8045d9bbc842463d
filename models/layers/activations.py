"""Activations by name: the names are what configurations and model cards say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from streamcell.models.errors import ConfigError

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,  # the exact form, x·Φ(x)
    "softmax": lambda x: torch.softmax(x, dim=-1),
}
OUTPUT_ACTIVATIONS = ("identity", "sigmoid", "tanh", "softmax")


def choose(what: str, name: str, allowed: Sequence[str]) -> str:
    """`name`, if it is one of `allowed`; `what` says in the error which setting is meant.

    Raises:
        ConfigError: `name` is not among `allowed`.
    """
    if name not in allowed:
        raise ConfigError(f"{what} must be one of {', '.join(allowed)}; got {name!r}")
    return name
