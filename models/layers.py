"""Recurrent layers: the parameters, and which of the two engines (torch's kernels, own scan) runs them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels, scan
from .activations import ACTIVATIONS, choose
from .scan import Cell, States


class RecurrentLayer(nn.Module):
    """One layer of `gates` gates a unit, with one bias a gate.

    Attributes:
        weight_ih: float32[gates·hidden, input], gates stacked in PyTorch's order.
        weight_hh: float32[gates·hidden, hidden].
        bias: float32[gates·hidden].
        fused: whether torch's kernels compute this layer's formula and may run it.
    """

    gates: int
    state_names: tuple[str, ...] = ("h",)

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.fused = False
        self.weight_ih = nn.Parameter(torch.empty(self.gates * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(self.gates * hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform input weights and orthogonal recurrent weights, gate by gate; biases zero."""
        for gate in self.weight_ih.chunk(self.gates):
            nn.init.xavier_uniform_(gate)
        for gate in self.weight_hh.chunk(self.gates):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, states: States, lengths: Tensor | None = None) -> tuple[Tensor, States]:
        """Run the layer on whichever engine computes its formula.

        Args:
            x: float32[batch, time, input].
            states: float32[batch, hidden] each.
            lengths: int64[batch] or None; a row stands still beyond its length, and gives zeros.

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

    def __init__(self, input_size: int, hidden_size: int, *, nonlinearity: str = "tanh") -> None:
        super().__init__(input_size, hidden_size)
        self.nonlinearity = choose("nonlinearity", nonlinearity, self.NONLINEARITIES)
        self.fused = nonlinearity in ("tanh", "relu")

    def _cell(self) -> Cell:
        return scan.rnn_cell(self.weight_hh, ACTIVATIONS[self.nonlinearity])

    def _kernel(self) -> tuple[kernels.Padded, kernels.Packed]:
        return kernels.rnn(self.nonlinearity, self.weight_ih, self.weight_hh, self.bias)


class LSTMLayer(RecurrentLayer):
    """Gates i, f, g, o; the candidate g is tanh or relu, and h' = o⊙tanh(c') either way."""

    gates = 4
    state_names = ("h", "c")
    CANDIDATES = ("tanh", "relu")

    def __init__(self, input_size: int, hidden_size: int, *, candidate: str = "tanh") -> None:
        super().__init__(input_size, hidden_size)
        self.candidate = choose("candidate", candidate, self.CANDIDATES)
        self.fused = candidate == "tanh"

    def reset_parameters(self) -> None:
        """As every layer, with the forget gate's bias at one (Jozefowicz et al. 2015)."""
        super().reset_parameters()
        with torch.no_grad():
            self.bias[self.hidden_size : 2 * self.hidden_size] = 1.0

    def _cell(self) -> Cell:
        return scan.lstm_cell(self.weight_hh, ACTIVATIONS[self.candidate])

    def _kernel(self) -> tuple[kernels.Padded, kernels.Packed]:
        return kernels.lstm(self.weight_ih, self.weight_hh, self.bias)


class GRULayer(RecurrentLayer):
    """Gates r, u (PyTorch's z), n; the reset gate acts before the recurrent product, or after it.

    Attributes:
        bias_hn: float32[hidden], only with `reset_after`: the bias inside the reset gate's product.
    """

    gates = 3

    def __init__(self, input_size: int, hidden_size: int, *, reset_after: bool = False) -> None:
        super().__init__(input_size, hidden_size)
        self.reset_after = reset_after
        self.fused = reset_after
        if reset_after:
            self.bias_hn = nn.Parameter(torch.zeros(hidden_size))

    def _cell(self) -> Cell:
        if self.reset_after:
            return scan.gru_reset_after_cell(self.weight_hh, self.bias_hn)
        return scan.gru_cell(self.weight_hh)

    def _kernel(self) -> tuple[kernels.Padded, kernels.Packed]:
        return kernels.gru_reset_after(self.weight_ih, self.weight_hh, self.bias, self.bias_hn)
