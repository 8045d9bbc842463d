"""The recurrent formulas, one timestep after the other, as the textbook writes them.

They serve the variants that torch's kernels do not compute and are the reference that the kernels are held
against. Shapes: x float[batch, time, input], states float[batch, hidden], `lengths` int64[batch] or None.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

States = tuple[Tensor, ...]
# (timestep's input product float[batch, gates·hidden], states) → next states; the first is the output.
Cell = Callable[[Tensor, States], States]


def scan(projected: Tensor, states: States, cell: Cell, lengths: Tensor | None) -> tuple[Tensor, States]:
    """Run `cell` over the time axis.

    Args:
        projected: float[batch, time, gates·hidden], W_x·x_t + b for every timestep.
        states: float[batch, hidden] each.
        cell: one step.
        lengths: int64[batch]; beyond its length a row's states do not change and its output is zero.

    Returns:
        float[batch, time, hidden] and the states after each row's last step.
    """
    outputs = []
    for t, step in enumerate(projected.unbind(1)):
        after = cell(step, states)
        output = after[0]
        if lengths is not None:
            running = (lengths > t).unsqueeze(1)
            after = tuple(torch.where(running, new, old) for new, old in zip(after, states, strict=True))
            output = torch.where(running, output, torch.zeros_like(output))
        states = after
        outputs.append(output)
    if not outputs:
        return projected.new_zeros(projected.shape[0], 0, states[0].shape[1]), states
    return torch.stack(outputs, dim=1), states


def rnn_cell(weight_hh: Tensor, activation: Callable[[Tensor], Tensor]) -> Cell:
    """h' = f(W_x·x + W_h·h + b), Elman (1990). weight_hh: float[hidden, hidden]."""

    def cell(step: Tensor, states: States) -> States:
        (h,) = states
        return (activation(step + h @ weight_hh.T),)

    return cell


def lstm_cell(weight_hh: Tensor, candidate: Callable[[Tensor], Tensor]) -> Cell:
    """Hochreiter & Schmidhuber (1997), forget gate of Gers et al. (2000). weight_hh: float[4·hidden, hidden].

    i, f, o = σ(W[x, h] + b); g = candidate(W[x, h] + b); c' = i⊙g + f⊙c; h' = o⊙tanh(c').
    """

    def cell(step: Tensor, states: States) -> States:
        h, c = states
        i, f, g, o = (step + h @ weight_hh.T).chunk(4, dim=1)
        c = torch.sigmoid(i) * candidate(g) + torch.sigmoid(f) * c
        return torch.sigmoid(o) * torch.tanh(c), c

    return cell


def gru_cell(weight_hh: Tensor) -> Cell:
    """Cho et al. (2014), reset before the product. weight_hh: float[3·hidden, hidden], gates r, u, n.

    r, u = σ(W[x, h] + b); n = tanh(W[x, r⊙h] + b); h' = u⊙h + (1 − u)⊙n.
    """
    hidden = weight_hh.shape[1]
    gates, product = weight_hh[: 2 * hidden], weight_hh[2 * hidden :]

    def cell(step: Tensor, states: States) -> States:
        (h,) = states
        r, u = torch.sigmoid(step[:, : 2 * hidden] + h @ gates.T).chunk(2, dim=1)
        n = torch.tanh(step[:, 2 * hidden :] + (r * h) @ product.T)
        return (u * h + (1 - u) * n,)

    return cell


def gru_reset_after_cell(weight_hh: Tensor, bias_hn: Tensor) -> Cell:
    """The variant of cuDNN and `torch.nn.GRU`, the reset gate after the product. bias_hn: float[hidden].

    As `gru_cell`, but n = tanh(W_x·x + b + r⊙(W_h·h + b_hn)).
    """

    def cell(step: Tensor, states: States) -> States:
        (h,) = states
        r_x, u_x, n_x = step.chunk(3, dim=1)
        r_h, u_h, n_h = (h @ weight_hh.T).chunk(3, dim=1)
        r, u = torch.sigmoid(r_x + r_h), torch.sigmoid(u_x + u_h)
        n = torch.tanh(n_x + r * (n_h + bias_hn))
        return (u * h + (1 - u) * n,)

    return cell
