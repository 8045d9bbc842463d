"""Recurrent modules of today's research, written as their papers write them, to be exported and served.

    python examples/modern_recurrence.py [MinGRU]           # exports it, serves it and streams ten steps
    streamcell export examples/modern_recurrence.py:MinGRU --out models/min_gru.onnx --input-shape 16

`docs/modern-recurrence.md` says what each computes and what a session keeps. Their weights are random: a factory of
your own builds the module and loads what was trained.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def recur(decay: Tensor, new: Tensor, before: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t for all timesteps of a chunk at once.

    Args:
        decay: float[batch, time, units], log a_t.
        new: float[batch, time, units], b_t.
        before: float[batch, units], h_0.

    Returns:
        float[batch, time, units]. Takes time² x units of memory, so `--max-chunk` bounds it.
    """
    total = decay.cumsum(1)
    # What is left at t of what came at s: a_{s+1} … a_t, at most 1, and nothing of what comes after t.
    left = (total[:, :, None] - total[:, None]).masked_fill(~past(new)[:, :, None], -torch.inf).exp()
    return total.exp() * before[:, None] + (left * new[:, None]).sum(2)


def past(x: Tensor) -> Tensor:
    """bool[time, time]: whether timestep s, a column, is not after t, a row, of x [batch, time, …]."""
    t = torch.arange(x.shape[1])
    return t[None] <= t[:, None]


class MinGRU(nn.Module):
    """Feng et al. 2024, "Were RNNs All We Needed?", section 3.1: gates that see the input alone."""

    state_names = ("h",)

    def __init__(self, size: int = 16, units: int = 32) -> None:
        super().__init__()
        self.units = units
        self.gate, self.candidate = nn.Linear(size, units), nn.Linear(size, units)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch, self.units),)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        z = self.gate(x)
        y = recur(-F.softplus(z), torch.sigmoid(z) * self.candidate(x), h)  # log(1 - σ(z)) = -softplus(z)
        return y, y[:, -1]


class MinLSTM(nn.Module):
    """Feng et al. 2024, section 3.2: forget and input gate of the input alone, normalised to add up to 1."""

    state_names = ("h",)

    def __init__(self, size: int = 16, units: int = 32) -> None:
        super().__init__()
        self.units = units
        self.gates, self.candidate = nn.Linear(size, 2 * units), nn.Linear(size, units)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch, self.units),)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        forget, take = self.gates(x).chunk(2, -1)
        more = F.softplus(-forget) - F.softplus(-take)  # log of σ(take) / σ(forget)
        y = recur(-F.softplus(more), torch.sigmoid(more) * self.candidate(x), h)
        return y, y[:, -1]


class SelectiveSSM(nn.Module):
    """Gu & Dao 2023, "Mamba", section 3: a causal convolution, then a state space whose Δ, B and C the input chooses.

    The loop is the recurrent form (their algorithm 2, equation 2a); it is exported one timestep a run.
    """

    state_names = ("window", "h")

    def __init__(self, size: int = 16, inner: int = 32, states: int = 8, taps: int = 4) -> None:
        super().__init__()
        self.inner, self.states, self.taps = inner, states, taps
        self.into, self.out = nn.Linear(size, 2 * inner), nn.Linear(inner, size)
        self.conv = nn.Conv1d(inner, inner, taps, groups=inner)
        self.choose = nn.Linear(inner, 2 * states)
        self.delta = nn.Linear(inner, inner)
        self.log_a = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return torch.zeros(batch, self.inner, self.taps - 1), torch.zeros(batch, self.inner, self.states)

    def forward(self, x: Tensor, window: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        u, gate = self.into(x).chunk(2, -1)
        seen = torch.cat([window, u.transpose(1, 2)], 2)
        u = F.silu(self.conv(seen)).transpose(1, 2)
        b, c = self.choose(u).chunk(2, -1)
        delta = F.softplus(self.delta(u))
        outputs = []
        for u_t, b_t, c_t, delta_t in zip(*(each.unbind(1) for each in (u, b, c, delta)), strict=True):
            decay = torch.exp(-delta_t[..., None] * self.log_a.exp())
            h = decay * h + (delta_t * u_t)[..., None] * b_t[:, None]
            outputs.append((h * c_t[:, None]).sum(-1) + self.skip * u_t)
        y = torch.stack(outputs, 1) * F.silu(gate)
        return self.out(y), seen[:, :, 1 - self.taps :], h


class LinearAttention(nn.Module):
    """Katharopoulos et al. 2020, "Transformers are RNNs", equations 16 to 20, with φ = elu + 1.

    1e-6 under the fraction is theirs too: φ(q) is 0 in float32 if all of q is below -17.
    """

    state_names = ("s", "z")

    def __init__(self, size: int = 16, heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv, self.out = nn.Linear(size, 3 * heads * width), nn.Linear(heads * width, size)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        heads, width = self.heads, self.width
        return torch.zeros(batch, heads, width, width), torch.zeros(batch, heads, width)

    def forward(self, x: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        q, k, v = by_head(self.qkv(x), 3, self.heads)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        weights = (q @ k.mT).masked_fill(~past(x), 0.0)  # of this chunk; what came before is in s and z
        size = weights.sum(-1) + (q @ z[..., None]).squeeze(-1)
        y = (weights @ v + q @ s) / (size[..., None] + 1e-6)
        return self.out(joined(y)), s + k.mT @ v, z + k.sum(2)


class MLSTM(nn.Module):
    """Beck et al. 2024, "xLSTM", section 2.3 and appendix A: the matrix memory C, its normaliser n, its stabiliser m.

    The exponential input gate i may grow without bound. C and n are held divided by exp(m), where m is the largest
    exponent so far, as the paper's equation 15 has it; the answer is the same and nothing overflows.
    """

    state_names = ("C", "n", "m")

    def __init__(self, size: int = 16, heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv, self.gates = nn.Linear(size, 3 * heads * width), nn.Linear(size, 2 * heads)
        self.open, self.out = nn.Linear(size, heads * width), nn.Linear(heads * width, size)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        C = torch.zeros(batch, self.heads, self.width, self.width)
        return C, C[:, :, 0].clone(), C[:, :, 0, 0].clone()

    def forward(self, x: Tensor, C: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, ...]:
        q, k, v = by_head(self.qkv(x), 3, self.heads)
        k = k * self.width**-0.5
        take, forget = self.gates(x).transpose(1, 2).chunk(2, 1)  # [batch, heads, time]: i = exp(take)
        kept = -F.softplus(-forget).cumsum(2)  # f = σ(forget); logarithms, added up
        # Exponents at t of what came at s in this chunk, and of what was there before it.
        of_chunk = (kept[..., None] - kept[:, :, None] + take[:, :, None]).masked_fill(~past(x), -torch.inf)
        of_before = kept + m[..., None]
        largest = torch.maximum(of_chunk.amax(-1), of_before)  # m_t = max(log f_t + m_{t-1}, log i_t)
        weights, before = torch.exp(of_chunk - largest[..., None]), torch.exp(of_before - largest)
        scores = (q @ k.mT) * weights
        size = scores.sum(-1) + before * (q @ n[..., None]).squeeze(-1)
        size = torch.maximum(size.abs(), torch.exp(-largest))
        h = (scores @ v + before[..., None] * (q @ C)) / size[..., None]
        last, before = weights[:, :, -1, :, None] * k, before[:, :, -1, None]
        after = (before[..., None] * C + last.mT @ v, before * n + last.sum(2), largest[..., -1])
        return self.out(torch.sigmoid(self.open(x)) * joined(h)), *after


class RollingTransformer(nn.Module):
    """A transformer block that attends to the last `window` timesteps, its keys and values in a rolling cache.

    The cache has a fixed length: a step appends its key and value and drops the oldest. Keys are cached before they are
    rotated (Su et al. 2021, "RoFormer"), so positions are places in the window and do not grow as a session goes on.
    `filled` counts the places of the cache that hold a timestep.
    """

    state_names = ("keys", "values", "filled")

    def __init__(self, size: int = 16, heads: int = 2, width: int = 8, window: int = 12) -> None:
        super().__init__()
        self.heads, self.width, self.window = heads, width, window
        self.norm, self.norm_mlp = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * heads * width), nn.Linear(heads * width, size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.register_buffer("frequencies", 10000.0 ** -(torch.arange(0, width, 2) / width))

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        cache = torch.zeros(batch, self.heads, self.window - 1, self.width)
        return cache, cache.clone(), torch.zeros(batch, dtype=torch.int64)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, filled: Tensor) -> tuple[Tensor, ...]:
        old, time = self.window - 1, x.shape[1]
        q, k, v = by_head(self.qkv(self.norm(x)), 3, self.heads)
        k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        place = torch.arange(old + time)
        query = place[old:]
        near = (place[None] <= query[:, None]) & (place[None] > query[:, None] - self.window)
        seen = place[None] >= old - filled[:, None]
        scores = self._rotated(q, query) @ self._rotated(k, place).mT * self.width**-0.5
        allowed = near[None, None] & seen[:, None, None]
        attention = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        x = x + self.out(joined(attention @ v))
        x = x + self.mlp(self.norm_mlp(x))
        return x, k[:, :, -old:], v[:, :, -old:], (filled + time).clamp(max=old)

    def _rotated(self, x: Tensor, place: Tensor) -> Tensor:
        angle = place[:, None] * self.frequencies
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def by_head(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[batch, time, parts x heads x width] → `parts` of [batch, heads, time, width]."""
    return tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in x.chunk(parts, -1))


def joined(x: Tensor) -> Tensor:
    """[batch, heads, time, width] → [batch, time, heads x width]."""
    return x.transpose(1, 2).flatten(2)


def main(name: str = "MinGRU") -> None:
    """Serve one of the modules, stream ten steps of noise through a session, and print what came."""
    import streamcell

    modules = {each.__name__: each for each in nn.Module.__subclasses__() if each.__module__ == __name__}
    if name not in modules:
        sys.exit(f"there is no module {name}; there are {', '.join(modules)}")
    module = modules[name]().eval()
    x = torch.randn(10, 16)
    with streamcell.local(module, "x:float32[16]") as client, client.session(name) as session:
        states = ", ".join(f"{state.name} {list(state.shape)}" for state in client.model(name).states)
        print(f"a session of {name} keeps {states}")
        for step in x.numpy():
            y = session.step(step)
            print(session.step_index, " ".join(f"{value:.4f}" for value in y[:6]), "…")


if __name__ == "__main__":
    main(*sys.argv[1:])
