"""What tests feed to models, and what PyTorch gives for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


def noise(*shape: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def truth(module: torch.nn.Module, x: Array) -> Array:
    """float32[batch, time, inputs] → float32[batch, time, outputs], of a module with memory."""
    with torch.no_grad():
        y: Array = module(torch.from_numpy(x))[0].numpy()
    return y
