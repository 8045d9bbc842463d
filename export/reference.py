"""The project's own models in PyTorch, as the proof wants them: numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from streamcell.models import Convolutional, Forecaster, Seq2Seq, SequenceModel, Wrapped

from .dense import Scaling
from .tensors import Array, as_array, as_tensor

# Timesteps of the proof's sequences; a convolution's are longer than its receptive field, up to a bound.
TIME, LONGEST = 19, 128


class ModelReference:
    """The reference, the random inputs and the initial states that belong to one model.

    Args:
        model: in eval mode, float32, on the CPU.
        seed: of the inputs.

    Attributes:
        time: timesteps of a sequence that shows all of the model's memory.
    """

    def __init__(self, model: SequenceModel, seed: int = 0) -> None:
        self._model = model
        self._rng = np.random.default_rng(seed)
        self._scaling = Scaling.of(model.input_affine)
        inner = model.inner if isinstance(model, Wrapped) else model
        sees = inner.receptive_field if isinstance(inner, Convolutional) else 0
        self.time = min(max(TIME, sees + 3), LONGEST)
        if isinstance(model, Forecaster):
            # So that the earliest of the values that it starts from come from the sequence.
            self.time += model.lags.settings.history

    @torch.no_grad()
    def __call__(
        self, inputs: Sequence[Array], states: Sequence[Array]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """x float32[batch, time, input] and the states before → y and the states after."""
        (x,) = inputs
        y, *after = self._model(as_tensor(x), *map(as_tensor, states))
        return (as_array(y),), tuple(map(as_array, after))

    def draw(self, batch: int, time: int) -> tuple[Array, ...]:
        """x float32[batch, time, input], normal; in raw units if the model standardises its input.

        For tokens int64[batch, time]: every other row as in use, source tokens and then target tokens, the rest of
        any mix.
        """
        if isinstance(self._model, Seq2Seq):
            return (_tokens(self._rng, batch, time, self._model.source_size, self._model.input_size),)
        x = self._rng.standard_normal((batch, time, self._model.input_size))
        if self._scaling is not None:
            scale = np.where(self._scaling.scale == 0, 1.0, self._scaling.scale)
            x = (x - self._scaling.shift) / scale
        return (x.astype(np.float32),)

    def initial(self, batch: int) -> tuple[Array, ...]:
        """The states before the first step."""
        return tuple(map(as_array, self._model.initial_state(batch)))


def _tokens(rng: np.random.Generator, batch: int, time: int, sources: int, tokens: int) -> Array:
    x = rng.integers(0, tokens, (batch, time))
    first = int(rng.integers(2))
    for row in range(first, batch, 2):
        turn = int(rng.integers(time + 1))
        x[row, :turn] = rng.integers(0, sources, turn)
        x[row, turn:] = rng.integers(sources, tokens, time - turn)
    return x
