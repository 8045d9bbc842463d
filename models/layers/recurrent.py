"""Recurrent layers: the parameters, and which of the two engines (torch's kernels, own scan) runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcell.models.checks import choose

from . import scan
from . import torch_kernels as kernels
from .activations import ACTIVATIONS
from .scan import Cell, States

# How the recurrent weights of each gate may begin, float32[hidden, hidden]. "uniform" is what torch's own
# recurrent modules do, ±1/√hidden.
RECURRENT_INITS: dict[str, Callable[[Tensor], object]] = {
    "orthogonal": nn.init.orthogonal_,  # Saxe et al. (2014)
    "identity": nn.init.eye_,  # Le et al. (2015)
    "glorot": nn.init.xavier_uniform_,
    "uniform": lambda gate: nn.init.uniform_(gate, -(gate.shape[1] ** -0.5), gate.shape[1] ** -0.5),
}


def kept(weight: Tensor, drop: float) -> Tensor:
    """A factor for each element of `weight`, in its shape: 0 with probability `drop`, else 1 / (1 − drop).

    Each random number decides on four elements, to 2⁻¹⁶. `torch.dropout` draws one an element, which cost a quarter
    of a training step.
    """
    numbers = torch.randint(-(2**63), 2**63 - 1, (-(-weight.numel() // 4),), device=weight.device)
    draws = numbers.view(torch.int16)[: weight.numel()].view(weight.shape)
    least = min(round(drop * 2**16), 2**16 - 1) - 2**15
    return (draws >= least).to(weight.dtype) / (1.0 - drop)


class RecurrentLayer(nn.Module):
    """One layer of `gates` gates a unit, with one bias a gate.

    Args:
        recurrent_init: "orthogonal", "identity", "glorot" or "uniform": how `weight_hh` begins, gate by gate.

    Attributes:
        weight_ih: float32[gates·hidden, input], gates stacked in PyTorch's order.
        weight_hh: float32[gates·hidden, hidden].
        bias: float32[gates·hidden].
        fused: whether torch's kernels compute this layer's formula and may run it.
        weight_drop: the share of `weight_hh` that training leaves out, drawn anew for each call of the layer
            (DropConnect: Wan et al. 2013; in recurrent layers Merity et al. 2018).
    """

    gates: int
    weight_drop = 0.0
    state_names: tuple[str, ...] = ("h",)

    def __init__(self, input_size: int, hidden_size: int, *, recurrent_init: str = "orthogonal") -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.recurrent_init = choose("recurrent_init", recurrent_init, tuple(RECURRENT_INITS))
        self.fused = False
        self.weight_ih = nn.Parameter(torch.empty(self.gates * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(self.gates * hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform input weights and recurrent weights by `recurrent_init`, gate by gate; biases zero."""
        for gate in self.weight_ih.chunk(self.gates):
            nn.init.xavier_uniform_(gate)
        for gate in self.weight_hh.chunk(self.gates):
            RECURRENT_INITS[self.recurrent_init](gate)
        nn.init.zeros_(self.bias)

    @property
    def recurrent(self) -> Tensor:
        """`weight_hh`, in training without the share that `weight_drop` leaves out, the rest scaled up."""
        if not self.weight_drop or not self.training:
            return self.weight_hh
        return self.weight_hh * kept(self.weight_hh, self.weight_drop)

    def forward(self, x: Tensor, states: States, lengths: Tensor | None = None) -> tuple[Tensor, States]:
        """Run the layer on whichever engine computes its formula.

        Args:
            x: float32[batch, time, input].
            states: float32[batch, hidden] each.
            lengths: int64[batch] or None; beyond its length a row's states do not change and its outputs are zeros.

        Returns:
            float32[batch, time, hidden] and the states after each row's last step.
        """
        if self.fused:
            padded, packed = self._kernel()
            return kernels.run(padded, packed, x, states, lengths)
        return self.scan(x, states, lengths)

    def scan(self, x: Tensor, states: States, lengths: Tensor | None = None) -> tuple[Tensor, States]:
        """The same as `forward`, always on the project's own scan."""
        return scan.scan(F.linear(x, self.weight_ih, self.bias), states, self._cell(), lengths)

    def _cell(self) -> Cell:
        raise NotImplementedError

    def _kernel(self) -> tuple[kernels.Padded, kernels.Packed]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, fused={self.fused}"


class RNNLayer(RecurrentLayer):
    """h' = f(W_x·x + W_h·h + b) with f tanh, relu or sigmoid."""

    gates = 1
    NONLINEARITIES = ("tanh", "relu", "sigmoid")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        nonlinearity: str = "tanh",
        recurrent_init: str = "orthogonal",
    ) -> None:
        super().__init__(input_size, hidden_size, recurrent_init=recurrent_init)
        self.nonlinearity = choose("nonlinearity", nonlinearity, self.NONLINEARITIES)
        self.fused = nonlinearity in ("tanh", "relu")

    def _cell(self) -> Cell:
        return scan.rnn_cell(self.recurrent, ACTIVATIONS[self.nonlinearity])

    def _kernel(self) -> tuple[kernels.Padded, kernels.Packed]:
        return kernels.rnn(self.nonlinearity, self.weight_ih, self.recurrent, self.bias)


class LSTMLayer(RecurrentLayer):
    """Gates i, f, g, o; the candidate g is tanh or relu, and h' = o⊙tanh(c') either way.

    `forget_bias` is what the forget gate's bias begins at: 1 by default (Gers et al. 2000, Jozefowicz et al. 2015).
    """

    gates = 4
    state_names = ("h", "c")
    CANDIDATES = ("tanh", "relu")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        candidate: str = "tanh",
        forget_bias: float = 1.0,
        recurrent_init: str = "orthogonal",
    ) -> None:
        self.forget_bias = forget_bias
        super().__init__(input_size, hidden_size, recurrent_init=recurrent_init)
        self.candidate = choose("candidate", candidate, self.CANDIDATES)
        self.fused = candidate == "tanh"

    def reset_parameters(self) -> None:
        """As every layer, but for the forget gate's bias."""
        super().reset_parameters()
        with torch.no_grad():
            self.bias[self.hidden_size : 2 * self.hidden_size] = self.forget_bias

    def _cell(self) -> Cell:
        return scan.lstm_cell(self.recurrent, ACTIVATIONS[self.candidate])

    def _kernel(self) -> tuple[kernels.Padded, kernels.Packed]:
        return kernels.lstm(self.weight_ih, self.recurrent, self.bias)


class GRULayer(RecurrentLayer):
    """Gates r, u (PyTorch's z), n; the reset gate acts before the recurrent product, or after it.

    Attributes:
        bias_hn: float32[hidden], only with `reset_after`: the bias inside the reset gate's product.
    """

    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        reset_after: bool = False,
        recurrent_init: str = "orthogonal",
    ) -> None:
        super().__init__(input_size, hidden_size, recurrent_init=recurrent_init)
        self.reset_after = reset_after
        self.fused = reset_after
        if reset_after:
            self.bias_hn = nn.Parameter(torch.zeros(hidden_size))

    def _cell(self) -> Cell:
        if self.reset_after:
            return scan.gru_reset_after_cell(self.recurrent, self.bias_hn)
        return scan.gru_cell(self.recurrent)

    def _kernel(self) -> tuple[kernels.Padded, kernels.Packed]:
        return kernels.gru_reset_after(self.weight_ih, self.recurrent, self.bias, self.bias_hn)
