"""A user's module as the proof and the exporter need it: inputs drawn, inputs and outputs checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import ExportError, ProofError
from .proof import error
from .states import InitialState, dtype_name
from .tensors import Array, as_array, as_tensor


class UserModule:
    """`module(x, *state) → (y, *state)`, with inputs drawn from an example.

    Args:
        module: in eval mode, on the CPU.
        example_x: [batch, time, *step], or [batch, *step] with `time_axis` False. Random inputs are made of
            its timesteps, so that they are of the kind the module expects (indices, positive values).
        initial_state: batch → states.
        time_axis: whether the module takes x with a time axis; False: it computes one timestep.

    Raises:
        ExportError: the example has no timestep.
    """

    def __init__(
        self, module: nn.Module, example_x: torch.Tensor, initial_state: InitialState, *, time_axis: bool
    ) -> None:
        leading = 2 if time_axis else 1
        if example_x.dim() < leading or example_x.numel() == 0:
            wanted = "[batch, time, ...]" if time_axis else "[batch, ...]"
            raise ExportError(f"example_x must be {wanted} and not empty; got {list(example_x.shape)}")
        self.module = module
        self.time_axis = time_axis
        self.x_dtype = dtype_name(example_x, "example_x")
        self.step_shape = tuple(example_x.shape[leading:])
        self._steps = as_array(example_x).reshape(-1, *self.step_shape)
        self._initial_state = initial_state
        self._rng = np.random.default_rng(0)

    def draw(self, batch: int, time: int) -> Array:
        """[batch, time, *step]: timesteps of the example in random order."""
        x: Array = self._steps[self._rng.integers(0, len(self._steps), (batch, time))]
        return x

    def initial(self, batch: int) -> tuple[Array, ...]:
        """The states before the first step."""
        return tuple(map(as_array, self._initial_state(batch)))

    @torch.no_grad()
    def __call__(self, x: Array, states: Sequence[Array]) -> tuple[Array, tuple[Array, ...]]:
        """x [batch, time, *step] and the states before → y [batch, time, ...] and the states after."""
        now = tuple(map(as_tensor, states))
        if self.time_axis:
            y, *after = call(self.module, as_tensor(x), now)
            return as_array(y), tuple(map(as_array, after))
        outputs = []
        for step in as_tensor(x).unbind(1):
            y, *now_list = call(self.module, step, now)
            now = tuple(now_list)
            outputs.append(y)
        return as_array(torch.stack(outputs, dim=1)), tuple(map(as_array, now))

    def check(self, tolerance: float, time: int = 5) -> torch.Tensor:
        """Hold the module against what it is supposed to be, in PyTorch alone.

        Returns:
            One timestep of y, [batch, *out].

        Raises:
            ExportError: outputs do not fit inputs in number, shape or dtype.
            ProofError: the whole sequence gives something else than its steps one by one.
        """
        batch = 2
        x, states = self.draw(batch, time), self.initial(batch)
        try:
            y, last = self(x, states)
        except (TypeError, RuntimeError, IndexError) as problem:
            shapes = ", ".join(str(list(value.shape)) for value in (x, *states))
            raise ExportError(
                f"{type(self.module).__name__} does not run on x and its {len(states)} states "
                f"({shapes}): {problem}"
            ) from problem
        if y.shape[:2] != (batch, time):
            raise ExportError(f"y must be [batch, time, ...] = [{batch}, {time}, ...]; got {list(y.shape)}")
        for index, (before, after) in enumerate(zip(states, last, strict=True)):
            if before.shape != after.shape or before.dtype != after.dtype:
                raise ExportError(
                    f"state {index} goes in as {before.dtype} {list(before.shape)} "
                    f"and comes out as {after.dtype} {list(after.shape)}"
                )
        pieces = []
        for step in range(time):
            piece, states = self(x[:, step : step + 1], states)
            pieces.append(piece)
        worst = max(
            error(a, b) for a, b in zip((np.concatenate(pieces, axis=1), *states), (y, *last), strict=True)
        )
        if not worst <= tolerance:
            raise ProofError(
                f"in PyTorch itself, {type(self.module).__name__} gives other outputs step by step than for "
                f"the whole sequence: error {worst:.3g}, tolerance {tolerance:g}. Every timestep may depend "
                "on the past only through the states"
            )
        return as_tensor(y[:, 0])


def call(module: nn.Module, x: torch.Tensor, states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """`module(x, *states)` as a tuple; a stateless module may give y by itself.

    Raises:
        ExportError: it does not take these arguments, or gives another number of states than it took.
    """
    result: Any = module(x, *states)
    if isinstance(result, torch.Tensor):
        result = (result,)
    if not isinstance(result, (tuple, list)) or not all(isinstance(r, torch.Tensor) for r in result):
        raise ExportError(
            f"forward must return (y, *state), all of them tensors; got {type(result).__name__}"
        )
    if len(result) != 1 + len(states):
        raise ExportError(
            f"forward took {len(states)} states and returned {len(result) - 1} after y; "
            "a module with states needs an initial_state(batch) that gives all of them"
        )
    return tuple(result)
