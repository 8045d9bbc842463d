"""RNN, LSTM and GRU: stacked recurrent layers under one head."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from streamcell.models.checks import positive, share
from streamcell.models.layers.recurrent import GRULayer, LSTMLayer, RecurrentLayer, RNNLayer
from streamcell.models.layers.scan import States

from .base import SequenceModel


class Recurrent(SequenceModel):
    """A stack of layers of one kind, u₀ = x and u_{l+1} = layer_l(norm(u_l)), with u_l added if residual.

    Args:
        num_layers: how many.
        residual: add a layer's input to its output if both have the same size.
        layer_norm: layer normalisation (Ba et al. 2016) of what goes into every layer but the first, and
            into the head; a residual path goes around it (pre-norm).
        tie_layers: one set of weights for every layer whose input has `hidden_size` features: for all but the
            first, and for that too if `input_size` is `hidden_size`.
        recurrent_init: how recurrent weights begin, see `RecurrentLayer`.
        weight_drop: the share of recurrent weights that training leaves out, see `RecurrentLayer`.
        settings: the layer's own (its non-linearity, its variant).
        common: the keyword arguments of `SequenceModel`.
    """

    layer_type: type[RecurrentLayer]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        settings: dict[str, Any],
        num_layers: int = 1,
        residual: bool = False,
        layer_norm: bool = False,
        tie_layers: bool = False,
        recurrent_init: str = "orthogonal",
        weight_drop: float = 0.0,
        **common: Any,
    ) -> None:
        positive("hidden_size", hidden_size)
        positive("num_layers", num_layers)
        super().__init__(input_size, hidden_size, output_size, **common)
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.residual = residual
        self.tie_layers = tie_layers
        self.recurrent_init = recurrent_init
        self.weight_drop = share("weight_drop", weight_drop)
        self._settings = settings
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        if tie_layers:
            sizes = list(dict.fromkeys(sizes))
        # The layers that have weights of their own; see `layer`.
        self.layers = nn.ModuleList(
            self.layer_type(size, hidden_size, recurrent_init=recurrent_init, **settings) for size in sizes
        )
        for layer in self.layers:
            cast(RecurrentLayer, layer).weight_drop = weight_drop
        self.norms = (
            nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_layers)) if layer_norm else None
        )

    @property
    def config(self) -> dict[str, Any]:
        return {
            **super().config,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "residual": self.residual,
            "layer_norm": self.norms is not None,
            "tie_layers": self.tie_layers,
            "recurrent_init": self.recurrent_init,
            "weight_drop": self.weight_drop,
            **self._settings,
        }

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.num_layers, self.hidden_size),) * len(self.state_names)

    def layer(self, index: int) -> RecurrentLayer:
        """The layer at a place of the stack; tied layers are one module at several places."""
        return cast(RecurrentLayer, self.layers[min(index, len(self.layers) - 1)])

    def adds_input(self, index: int) -> bool:
        """Whether the input of the layer at `index` is added to its output."""
        return self.residual and self.layer(index).input_size == self.hidden_size

    def _body(self, x: Tensor, state: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        after: list[States] = []
        for index in range(self.num_layers):
            inner = x if index == 0 else self._drop(x if self.norms is None else self.norms[index - 1](x))
            y, states = self.layer(index)(inner, tuple(tensor[index] for tensor in state), lengths)
            x = x + y if self.adds_input(index) else y
            after.append(states)
        x = x if self.norms is None else self.norms[-1](x)
        return x, tuple(torch.stack(tensors) for tensors in zip(*after, strict=True))


class RNN(Recurrent):
    """Vanilla RNN: h' = f(W_x·x + W_h·h + b), y = f_y(W_y·h' + b_y); f is "tanh", "relu" or "sigmoid".

    Further keyword arguments are those of `Recurrent`.
    """

    kind = "rnn"
    state_names = ("h",)
    layer_type = RNNLayer

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        nonlinearity: str = "tanh",
        **common: Any,
    ) -> None:
        settings = {"nonlinearity": nonlinearity}
        super().__init__(input_size, hidden_size, output_size, settings=settings, **common)


class LSTM(Recurrent):
    """LSTM with forget, input and output gates; the candidate's activation is "tanh" or "relu".

    `forget_bias` is what the forget gate's bias begins at. Further keyword arguments are those of `Recurrent`.
    """

    kind = "lstm"
    state_names = ("h", "c")
    layer_type = LSTMLayer

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        candidate: str = "tanh",
        forget_bias: float = 1.0,
        **common: Any,
    ) -> None:
        settings = {"candidate": candidate, "forget_bias": forget_bias}
        super().__init__(input_size, hidden_size, output_size, settings=settings, **common)


class GRU(Recurrent):
    """GRU, h' = u⊙h + (1 − u)⊙n; the reset gate before the product, or after it (PyTorch's and cuDNN's).

    Further keyword arguments are those of `Recurrent`.
    """

    kind = "gru"
    state_names = ("h",)
    layer_type = GRULayer

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        reset_after: bool = False,
        **common: Any,
    ) -> None:
        settings = {"reset_after": reset_after}
        super().__init__(input_size, hidden_size, output_size, settings=settings, **common)
