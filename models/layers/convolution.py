"""A causal convolution over time that can be interrupted and continued: its memory is an explicit state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamcell.models.checks import choose, positive
from streamcell.models.errors import ConfigError

from .activations import ACTIVATIONS
from .norms import batch_normalised


class CausalConv(nn.Module):
    """act(norm(Σ_j W_j·x_{t − (k − 1 − j)·d} + b)): y_t depends on x_t and on earlier steps alone.

    The last (k − 1)·d steps of x are the layer's history; before the first step they are zeros, so that a
    sequence is treated as if padded with zeros on its left.

    Attributes:
        conv: weight float32[out_channels, in_channels, k], applied without padding.
        norm: batch normalisation over all timesteps of all rows, or None.
        activation: "sigmoid", "tanh", "relu", "gelu" (the exact form) or "identity".
        history: timesteps of x that are carried.
    """

    ACTIVATIONS = ("sigmoid", "tanh", "relu", "gelu", "identity")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        dilation: int = 1,
        activation: str = "relu",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size < 2:
            raise ConfigError(
                f"kernel_size must be at least 2 (with 1 there is no memory: an mlp); got {kernel_size}"
            )
        positive("channels", out_channels)
        self.history = (kernel_size - 1) * positive("dilation", dilation)
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation)
        self.norm = nn.BatchNorm1d(out_channels) if batch_norm else None
        self.activation = choose("activation", activation, self.ACTIVATIONS)

    @property
    def state_shape(self) -> tuple[int, int]:
        """[history, in_channels]."""
        return self.history, self.conv.in_channels

    def forward(self, x: Tensor, history: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: float32[batch, time, in_channels].
            history: float32[batch, history, in_channels], the steps before x, the oldest first.
            lengths: int64[batch] or None; beyond its length a row's history does not change.

        Returns:
            float32[batch, time, out_channels], and the history after each row's last step.
        """
        batch, time, _ = x.shape
        if batch == 0 or time == 0:
            return x.new_zeros(batch, time, self.conv.out_channels), history
        whole = torch.cat([history, x], dim=1)
        y = self.conv(whole.transpose(1, 2)).transpose(1, 2)
        if self.norm is not None:
            y = self._normalise(y, lengths)
        if lengths is None:
            after = whole[:, time:]
        else:
            steps = lengths[:, None] + torch.arange(self.history, device=x.device)
            after = whole.gather(1, steps[:, :, None].expand(-1, -1, x.shape[2]))
        return ACTIVATIONS[self.activation](y), after

    def _normalise(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        """y float32[batch, time, channels], normalised; batch statistics are those of real timesteps only."""
        norm = self.norm
        if norm is None:
            return y
        if lengths is None or not self.training:
            return batch_normalised(norm, y.flatten(0, 1)).reshape(y.shape)
        real = torch.arange(y.shape[1], device=y.device) < lengths[:, None]
        return torch.zeros_like(y).index_put((real,), batch_normalised(norm, y[real]))

    def extra_repr(self) -> str:
        return f"history={self.history}, activation={self.activation}"
