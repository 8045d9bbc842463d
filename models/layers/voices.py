"""A head for music in parts: each voice chooses one key or rests, and a key sounds if a voice chose it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamcell.models.checks import positive

# What is added to the odds before their logarithm; and the least probability, as a share of a voice's choice itself,
# of its choosing anything else. Both are powers of two, so every precision holds them.
LEAST_ODDS = 2.0**-24
LEAST_DOUBT = 2.0**-20
# Where voices begin, as shares of the keys: about where a choir sings on a piano.
LOWEST, HIGHEST, WIDTH = 0.3, 0.6, 0.07


class Voices(nn.Module):
    """Logits of keys from `voices` softmaxes over the keys and a rest.

    With z_v = softmax(a_v), the odds that voice v sings key k are z_vk / Σ_{j≠k} z_vj, and a key's odds are the sum
    of its voices': y_k = log Σ_v z_vk / Σ_{j≠k} z_vj. The sum over the other keys stands for 1 − z_vk because it
    keeps its digits where z_vk is almost 1.

    A plain head must learn that a voice sings one note at a time; here a key becomes likely only at the cost of others.
    What y parametrises is the same, independent keys.

    Args:
        voices: how many.
        keys: features of y.

    Attributes:
        others: float32[keys + 1, keys], z @ others = what is not key k; a constant, no weight.
    """

    others: Tensor

    def __init__(self, voices: int, keys: int) -> None:
        super().__init__()
        self.voices = positive("voices", voices)
        self.keys = keys
        others = 1.0 - (1.0 - LEAST_DOUBT) * torch.eye(keys + 1, keys)
        self.register_buffer("others", others, persistent=False)

    @property
    def input_size(self) -> int:
        """Features of a: voices·(keys + 1)."""
        return self.voices * (self.keys + 1)

    def forward(self, a: Tensor) -> Tensor:
        """a: float32[..., voices·(keys + 1)], voice by voice, the rest last → float32[..., keys]."""
        z = a.reshape(*a.shape[:-1], self.voices, self.keys + 1).softmax(-1)
        odds = z[..., : self.keys] / (z @ self.others)
        return torch.log(odds.sum(-2) + LEAST_ODDS)

    @torch.no_grad()
    def spread(self, bias: Tensor) -> None:
        """Set the bias float32[voices·(keys + 1)] of the map that gives a: each voice begins in its own register."""
        key = torch.arange(self.keys, dtype=bias.dtype)
        for voice, centre in zip(
            bias.view(self.voices, -1), torch.linspace(LOWEST, HIGHEST, self.voices), strict=True
        ):
            voice[: self.keys] = -0.5 * ((key - centre * self.keys) / (WIDTH * self.keys)).square()
            voice[self.keys] = -4.0

    def extra_repr(self) -> str:
        return f"{self.voices}, {self.keys}"
