"""The same formulas on torch's own kernels (ATen, oneDNN, cuDNN), for the variants that these compute.

torch's kernels hold two biases a gate; the second is given as zeros, so that a gate has one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .scan import States

# (x float[batch, time, input], states float[1, batch, hidden] each) → (y, *states)
Padded = Callable[[Tensor, States], States]
# (packed float[steps, input], batch sizes int64[time], states) → (packed y, *states)
Packed = Callable[[Tensor, Tensor, States], States]


def run(
    padded: Padded, packed: Packed, x: Tensor, states: States, lengths: Tensor | None
) -> tuple[Tensor, States]:
    """One layer over x float[batch, time, input] from states float[batch, hidden] each.

    Rows beyond their `lengths` (int64[batch]) leave their state as it is and give zeros; a length may be 0.
    """
    if x.shape[0] == 0 or x.shape[1] == 0:
        return x.new_zeros(x.shape[0], x.shape[1], states[0].shape[1]), states
    if lengths is None:
        y, *after = padded(x, tuple(state.unsqueeze(0) for state in states))
        return y, tuple(state.squeeze(0) for state in after)
    # A packed sequence cannot hold an empty row: run one step of it, then drop the result.
    idle = lengths == 0
    sequence = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
    order, back = sequence.sorted_indices, sequence.unsorted_indices
    if order is None or back is None:
        raise RuntimeError("a sequence packed with enforce_sorted=False always carries its order")
    first = tuple(state.unsqueeze(0).index_select(1, order) for state in states)
    data, *after = packed(sequence.data, sequence.batch_sizes, first)
    y, _ = pad_packed_sequence(
        PackedSequence(data, sequence.batch_sizes, order, back), batch_first=True, total_length=x.shape[1]
    )
    last = (state.index_select(1, back).squeeze(0) for state in after)
    y = y.masked_fill(idle[:, None, None], 0.0)
    return y, tuple(torch.where(idle[:, None], old, new) for old, new in zip(states, last, strict=True))


def _train() -> bool:
    """What the kernels call training: keep what the backward pass needs. cuDNN refuses to go back without."""
    return torch.is_grad_enabled()


def rnn(nonlinearity: str, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> tuple[Padded, Packed]:
    """tanh or relu RNN of one layer. weight_ih [H, I], weight_hh [H, H], bias [H]."""
    weights = [weight_ih, weight_hh, bias, torch.zeros_like(bias)]
    kernel = torch.rnn_tanh if nonlinearity == "tanh" else torch.rnn_relu
    return (
        lambda x, states: kernel(x, states[0], weights, True, 1, 0.0, _train(), False, True),
        lambda data, sizes, states: kernel(data, sizes, states[0], weights, True, 1, 0.0, _train(), False),
    )


def lstm(weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> tuple[Padded, Packed]:
    """LSTM of one layer, gates i, f, g, o. weight_ih [4H, I], weight_hh [4H, H], bias [4H]."""
    weights = [weight_ih, weight_hh, bias, torch.zeros_like(bias)]
    return (
        lambda x, states: torch.lstm(x, states, weights, True, 1, 0.0, _train(), False, True),
        lambda data, sizes, states: torch.lstm(data, sizes, states, weights, True, 1, 0.0, _train(), False),
    )


def gru_reset_after(
    weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, bias_hn: Tensor
) -> tuple[Padded, Packed]:
    """GRU of one layer, gates r, z, n. weight_ih [3H, I], weight_hh [3H, H], bias [3H], bias_hn [H]."""
    no_bias = bias.new_zeros(2 * bias_hn.shape[0])
    weights = [weight_ih, weight_hh, bias, torch.cat([no_bias, bias_hn])]
    return (
        lambda x, states: torch.gru(x, states[0], weights, True, 1, 0.0, _train(), False, True),
        lambda data, sizes, states: torch.gru(data, sizes, states[0], weights, True, 1, 0.0, _train(), False),
    )
