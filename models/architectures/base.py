"""What every model of the project is: a module with its state passed in and out, and a configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamcell.models.checks import choose, positive, share
from streamcell.models.errors import ConfigError, ShapeError
from streamcell.models.layers.activations import ACTIVATIONS, OUTPUT_ACTIVATIONS
from streamcell.models.layers.affine import Affine
from streamcell.models.layers.scan import States
from streamcell.models.layers.voices import Voices

DISTRIBUTIONS = ("bernoulli_logits", "categorical_logits", "real", "quantiles")


class SequenceModel(nn.Module):
    """forward(x, *state, lengths=None) → (y, *state), with a head of its own and optional fixed scalings.

    The order of computation is input_affine → body → dropout → head → voices → output_activation → output_affine.

    Args:
        input_size: features of one timestep of x.
        body_size: features that the body hands to the head.
        output_size: features of one timestep of y.
        dropout: probability of a unit being dropped between layers and before the head, in training only.
        output_activation: "identity", "sigmoid", "tanh" or "softmax".
        distribution: what y parametrises, one of `DISTRIBUTIONS`, None if unsaid.
        input_affine, output_affine: whether there is an `Affine` before the body and after the activation.
        voices: how many voices choose among the outputs, see `Voices`; 0: the head gives the outputs' own logits.

    Raises:
        ConfigError: a setting is out of range.
    """

    kind: str
    state_names: tuple[str, ...] = ()
    # The place of the batch axis in every state.
    state_axis: int = 1
    # Whether a training step must know which timesteps are padding (batch normalisation, histories).
    trains_with_lengths: bool = False

    def __init__(
        self,
        input_size: int,
        body_size: int,
        output_size: int,
        *,
        dropout: float = 0.0,
        output_activation: str = "identity",
        distribution: str | None = None,
        input_affine: bool = False,
        output_affine: bool = False,
        voices: int = 0,
    ) -> None:
        super().__init__()
        self.input_size = positive("input_size", input_size)
        self.output_size = positive("output_size", output_size)
        self.dropout = share("dropout", dropout)
        self.output_activation = choose("output_activation", output_activation, OUTPUT_ACTIVATIONS)
        self.distribution = (
            None if distribution is None else choose("distribution", distribution, DISTRIBUTIONS)
        )
        self.input_affine = Affine(input_size) if input_affine else None
        self.voices = self._voices(voices) if voices else None
        self.head = nn.Linear(body_size, output_size if self.voices is None else self.voices.input_size)
        if self.voices is not None:
            self.voices.spread(self.head.bias)
        self.output_affine = Affine(output_size) if output_affine else None

    def _voices(self, voices: int) -> Voices:
        if self.distribution != "bernoulli_logits" or self.output_activation != "identity":
            raise ConfigError(
                "voices choose keys: they need bernoulli_logits and no output_activation; "
                f"got {self.distribution} and {self.output_activation}"
            )
        return Voices(voices, self.output_size)

    @property
    def config(self) -> dict[str, Any]:
        """All that `build` needs to make this model again, as JSON values; the weights are not in it."""
        return {
            "kind": self.kind,
            "input_size": self.input_size,
            "output_size": self.output_size,
            "dropout": self.dropout,
            "output_activation": self.output_activation,
            "distribution": self.distribution,
            "input_affine": self.input_affine is not None,
            "output_affine": self.output_affine is not None,
            "voices": 0 if self.voices is None else self.voices.voices,
        }

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each of `state_names` for one sequence, its batch axis left out."""
        return ()

    def initial_state(self, batch: int) -> States:
        """Zeros of each of `state_shapes` for `batch` rows, on the model's device; () for a stateless model."""
        like = self.head.weight
        return tuple(like.new_zeros(self._batched(shape, batch)) for shape in self.state_shapes)

    def _batched(self, shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
        return (*shape[: self.state_axis], batch, *shape[self.state_axis :])

    def forward(self, x: Tensor, *state: Tensor, lengths: Tensor | None = None) -> States:
        """Run the model over whole sequences.

        Args:
            x: float32[batch, time, input_size].
            state: float32, one for each of `state_names`, as `initial_state` gives them; none of them: that.
            lengths: int64 or int32[batch], timesteps that count in each row (0 ≤ length ≤ time). Beyond them
                a row's state does not change and its y is zero.

        Returns:
            y float32[batch, time, output_size], then the state after each row's last timestep.

        Raises:
            ShapeError: x, a state or `lengths` does not fit.
        """
        self._check(x, state, lengths)
        if lengths is not None:
            lengths = lengths.to(device=x.device, dtype=torch.int64)
        y = x if self.input_affine is None else self.input_affine(x)
        y, state = self._body(y, state or self.initial_state(x.shape[0]), lengths)
        y = self.head(self._drop(y))
        if self.voices is not None:
            y = self.voices(y)
        y = ACTIVATIONS[self.output_activation](y)
        if self.output_affine is not None:
            y = self.output_affine(y)
        if lengths is not None:
            beyond = torch.arange(y.shape[1], device=y.device) >= lengths[:, None]
            y = y.masked_fill(beyond[:, :, None], 0.0)
        return y, *state

    def _body(self, x: Tensor, state: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        """x float32[batch, time, input_size] → float32[batch, time, body_size] and the states."""
        raise NotImplementedError

    def _drop(self, x: Tensor) -> Tensor:
        return torch.dropout(x, self.dropout, self.training) if self.dropout else x

    def _check_x(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[2] != self.input_size:
            raise ShapeError(f"x must be [batch, time, {self.input_size}]; got {list(x.shape)}")

    def _check(self, x: Tensor, state: States, lengths: Tensor | None) -> None:
        self._check_x(x)
        if state and len(state) != len(self.state_names):
            names = ", ".join(self.state_names) or "no state"
            raise ShapeError(f"{self.kind} takes {names}; got {len(state)} state tensors")
        for name, tensor, shape in zip(self.state_names, state, self.state_shapes, strict=False):
            if tensor.shape != self._batched(shape, x.shape[0]):
                wanted = list(self._batched(shape, x.shape[0]))
                raise ShapeError(f"state {name} must be {wanted}; got {list(tensor.shape)}")
        if lengths is None:
            return
        if lengths.shape != x.shape[:1] or lengths.is_floating_point():
            raise ShapeError(
                f"lengths must be integers [{x.shape[0]}]; got {lengths.dtype} {list(lengths.shape)}"
            )
        if x.shape[0] and not 0 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]:
            raise ShapeError(f"lengths must be between 0 and {x.shape[1]}; got {lengths.tolist()}")
