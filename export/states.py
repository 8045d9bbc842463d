"""What a user's module carries from step to step, found out by looking at its initial state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from streamcell.card import DTYPES, State
from streamcell.card.signature import Dtype

from .errors import ExportError
from .nested import Nest
from .tensors import Array, as_array

# batch → the states of that many sessions before their first step: a tensor, or tensors in tuples, dicts, dataclasses.
InitialState = Callable[[int], Any]
# Two batch sizes, to distinguish the batch axis from an axis of the same size.
SMALL, LARGE = 2, 3


def initial_state_of(module: nn.Module, given: InitialState | None) -> InitialState | None:
    """The function that makes initial states: `given`, or the module's own; None if it has none.

    A module's own is its method `initial_state`, `init_hidden` or `init_state` that takes the batch size.

    Raises:
        ExportError: the module's `initial_state` is not a function.
    """
    found = given
    for name in ("initial_state", "init_hidden", "init_state"):
        found = getattr(module, name, None) if found is None else found
        if found is not None and name != "initial_state" and not _takes_batch(found):
            found = None
    if found is not None and not callable(found):
        raise ExportError("initial_state must be a function: batch → the states, as a tuple of tensors")
    return found


def _takes_batch(function: Any) -> bool:
    if not callable(function):
        return False
    needed = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) == 1


def flat(value: Any) -> list[torch.Tensor]:
    """All tensors of a nested value, in order."""
    return Nest.of(value).take(value)


def detect_states(initial_state: InitialState, names: Sequence[str] | None) -> tuple[State, ...]:
    """The card's description of each state.

    The batch axis is the one that grows with the batch; initial values must be the same for every row and at
    every call.

    Args:
        names: what to call them; None: "state", or "state0", "state1", … if there are several.

    Raises:
        ExportError: the initial states do not show which axis is the batch, or are not constant.
    """
    small, large, again = (flat(initial_state(batch)) for batch in (SMALL, LARGE, LARGE))
    if len(small) != len(large):
        raise ExportError("initial_state returns a different number of states for another batch size")
    if names is None:
        names = ["state"] if len(small) == 1 else [f"state{index}" for index in range(len(small))]
    if len(names) != len(small):
        raise ExportError(f"{len(names)} names ({', '.join(names)}) for {len(small)} states")
    return tuple(_describe(name, *tensors) for name, *tensors in zip(names, small, large, again, strict=True))


def _describe(name: str, small: torch.Tensor, large: torch.Tensor, again: torch.Tensor) -> State:
    grown = [axis for axis, size in enumerate(large.shape) if small.shape[axis : axis + 1] != (size,)]
    if small.dim() != large.dim() or len(grown) != 1 or large.shape[grown[0]] != LARGE:
        raise ExportError(
            f"state {name}: no axis changes with the batch size: initial_state({SMALL}) has shape {list(small.shape)}, "
            f"initial_state({LARGE}) has {list(large.shape)}"
        )
    (axis,) = grown
    dtype = dtype_name(large, f"state {name}")
    values = as_array(large)
    first = values.take(0, axis=axis)
    if not np.array_equal(values, as_array(again)) or any(
        not np.array_equal(first, values.take(row, axis=axis)) for row in range(1, LARGE)
    ):
        raise ExportError(
            f"state {name}: initial_state must return the same values for every row and at every call"
        )
    return State(
        input=name,
        output=f"{name}_next",
        dtype=dtype,
        shape=first.shape,
        batch_axis=axis,
        initial=_initial(name, first),
    )


def _initial(name: str, value: Array) -> float | tuple[float, ...]:
    flat = value.astype(np.float64).reshape(-1)
    if not np.isfinite(flat).all():
        raise ExportError(f"state {name}: the initial values are not all finite")
    if np.array_equal(flat, np.full_like(flat, flat[0])):
        return float(flat[0])
    return tuple(map(float, flat))


def dtype_name(tensor: torch.Tensor, what: str) -> Dtype:
    """numpy's name of a tensor's dtype.

    Raises:
        ExportError: a card cannot describe this dtype, such as bfloat16; `what` names the tensor.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ExportError(f"{what} is {name}; supported are {', '.join(DTYPES)}")
    return cast(Dtype, name)
