"""Activations by name: the names are what configurations and model cards say."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

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
