"""Causal convolutional models: a plain stack (CNN) and dilated residual blocks (TCN), under one head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn

from streamcell.models.checks import positive
from streamcell.models.layers.activations import ACTIVATIONS
from streamcell.models.layers.convolution import CausalConv
from streamcell.models.layers.scan import States

from .base import SequenceModel


class Convolutional(SequenceModel):
    """What the two have in common: the input history of each convolution is a state, batch axis first.

    Attributes:
        layers: every convolution in the order of computation; the state of the one at i is `history{i}`.
    """

    state_axis = 0
    trains_with_lengths = True
    layers: nn.ModuleList

    def _stack(self, layers: Sequence[CausalConv]) -> None:
        self.layers = nn.ModuleList(layers)
        self.state_names = tuple(f"history{index}" for index in range(len(layers)))

    def layer(self, index: int) -> CausalConv:
        """The convolution at a place."""
        return cast(CausalConv, self.layers[index])

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self.layer(index).state_shape for index in range(len(self.layers)))

    @property
    def receptive_field(self) -> int:
        """How many timesteps, the current one among them, an output depends on."""
        return 1 + sum(shape[0] for shape in self.state_shapes)


class CNN(Convolutional):
    """Causal convolutions one after the other, without dilation.

    Args:
        channels: output channels of each layer, at least one.
        kernel_size: timesteps that a layer sees, at least 2.
        activation: "sigmoid", "tanh", "relu" or "gelu".
        batch_norm: batch normalisation between each convolution and its activation.
        common: the keyword arguments of `SequenceModel`.
    """

    kind = "cnn"

    def __init__(
        self,
        input_size: int,
        channels: Sequence[int],
        output_size: int,
        *,
        kernel_size: int = 3,
        activation: str = "relu",
        batch_norm: bool = False,
        **common: Any,
    ) -> None:
        positive("layers", len(channels))
        super().__init__(input_size, positive("channels", channels[-1]), output_size, **common)
        self._settings = {"kernel_size": kernel_size, "activation": activation, "batch_norm": batch_norm}
        self._stack(
            [
                CausalConv(a, b, kernel_size=kernel_size, activation=activation, batch_norm=batch_norm)
                for a, b in pairwise([input_size, *channels])
            ]
        )

    @property
    def config(self) -> dict[str, Any]:
        channels = [self.layer(index).conv.out_channels for index in range(len(self.layers))]
        return {**super().config, "channels": channels, **self._settings}

    def _body(self, x: Tensor, state: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        after = []
        for index, history in enumerate(state):
            x, history = self.layer(index)(x if index == 0 else self._drop(x), history, lengths)
            after.append(history)
        return x, tuple(after)


class TCN(Convolutional):
    """Temporal convolutional network (Bai et al. 2018): block i is act(skip(x) + conv(conv(x))), dilation b^i.

    Each convolution has normalisation, activation and dropout behind it, as in the paper, which normalises
    weights while this normalises batches; skip is a 1×1 convolution if the channels differ.

    Args:
        channels: channels of each block, at least one.
        kernel_size: taps of each convolution, at least 2.
        dilation_base: b; 1: no dilation.
        activation: "sigmoid", "tanh", "relu" or "gelu".
        batch_norm: batch normalisation between each convolution and its activation.
        common: the keyword arguments of `SequenceModel`.
    """

    kind = "tcn"

    def __init__(
        self,
        input_size: int,
        channels: Sequence[int],
        output_size: int,
        *,
        kernel_size: int = 3,
        dilation_base: int = 2,
        activation: str = "relu",
        batch_norm: bool = False,
        **common: Any,
    ) -> None:
        positive("layers", len(channels))
        super().__init__(input_size, positive("channels", channels[-1]), output_size, **common)
        positive("dilation_base", dilation_base)
        self.activation = activation
        self.kernel_size = kernel_size
        self.dilation_base = dilation_base
        self.batch_norm = batch_norm
        sizes = list(pairwise([input_size, *channels]))
        self._stack(
            [
                CausalConv(
                    size,
                    out,
                    kernel_size=kernel_size,
                    dilation=dilation_base**block,
                    activation=activation,
                    batch_norm=batch_norm,
                )
                for block, (a, out) in enumerate(sizes)
                for size in (a, out)
            ]
        )
        # On [batch, time, channels] a convolution of one tap is a linear map.
        self.skips = nn.ModuleList(nn.Identity() if a == b else nn.Linear(a, b) for a, b in sizes)

    @property
    def config(self) -> dict[str, Any]:
        return {
            **super().config,
            "channels": [self.layer(index).conv.out_channels for index in range(0, len(self.layers), 2)],
            "kernel_size": self.kernel_size,
            "dilation_base": self.dilation_base,
            "activation": self.activation,
            "batch_norm": self.batch_norm,
        }

    def _body(self, x: Tensor, state: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        after = []
        for index, skip in enumerate(self.skips):
            inner, first = self.layer(2 * index)(x, state[2 * index], lengths)
            inner, second = self.layer(2 * index + 1)(self._drop(inner), state[2 * index + 1], lengths)
            after += [first, second]
            x = ACTIVATIONS[self.activation](skip(x) + self._drop(inner))
        return x, tuple(after)
