"""RNN, LSTM and GRU: stacked recurrent layers under one head."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .base import SequenceModel, positive
from .errors import ShapeError
from .layers import GRULayer, LSTMLayer, RecurrentLayer, RNNLayer
from .scan import States


class _Recurrent(SequenceModel):
    """Layers of one kind; `settings` are the layer's own (its non-linearity, its variant)."""

    layer_type: type[RecurrentLayer]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        num_layers: int,
        settings: dict[str, Any],
        **common: Any,
    ) -> None:
        positive("hidden_size", hidden_size)
        positive("num_layers", num_layers)
        super().__init__(input_size, hidden_size, output_size, **common)
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self._settings = settings
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(self.layer_type(size, hidden_size, **settings) for size in sizes)

    @property
    def config(self) -> dict[str, Any]:
        return {
            **super().config,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            **self._settings,
        }

    def initial_state(self, batch: int) -> States:
        like = self.head.weight
        return tuple(like.new_zeros(self.num_layers, batch, self.hidden_size) for _ in self.state_names)

    def _body(self, x: Tensor, state: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        after: list[States] = []
        for index, module in enumerate(self.layers):
            layer = cast(RecurrentLayer, module)
            x, states = layer(
                x if index == 0 else self._drop(x), tuple(tensor[index] for tensor in state), lengths
            )
            after.append(states)
        return x, tuple(torch.stack(tensors) for tensors in zip(*after, strict=True))

    def _check(self, x: Tensor, state: States, lengths: Tensor | None) -> None:
        super()._check(x, state, lengths)
        shape = (self.num_layers, x.shape[0], self.hidden_size)
        for name, tensor in zip(self.state_names, state, strict=False):
            if tensor.shape != shape:
                raise ShapeError(f"state {name} must be {list(shape)}; got {list(tensor.shape)}")


class RNN(_Recurrent):
    """Vanilla RNN: h' = f(W_x·x + W_h·h + b), y = f_y(W_y·h' + b_y); f is "tanh", "relu" or "sigmoid".

    Further keyword arguments are those of `SequenceModel`.
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
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        **common: Any,
    ) -> None:
        settings = {"nonlinearity": nonlinearity}
        super().__init__(
            input_size, hidden_size, output_size, num_layers=num_layers, settings=settings, **common
        )


class LSTM(_Recurrent):
    """LSTM with forget, input and output gates; the candidate's activation is "tanh" or "relu".

    Further keyword arguments are those of `SequenceModel`.
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
        num_layers: int = 1,
        candidate: str = "tanh",
        **common: Any,
    ) -> None:
        settings = {"candidate": candidate}
        super().__init__(
            input_size, hidden_size, output_size, num_layers=num_layers, settings=settings, **common
        )


class GRU(_Recurrent):
    """GRU, h' = u⊙h + (1 − u)⊙n; the reset gate before the product, or after it (PyTorch's and cuDNN's).

    Further keyword arguments are those of `SequenceModel`.
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
        num_layers: int = 1,
        reset_after: bool = False,
        **common: Any,
    ) -> None:
        settings = {"reset_after": reset_after}
        super().__init__(
            input_size, hidden_size, output_size, num_layers=num_layers, settings=settings, **common
        )
