"""Tries the ways in which a module may be called until one works, or explains why none does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .calling import Order
from .errors import ExportError, Misfit
from .examples import Examples
from .finding import find
from .states import InitialState
from .user_module import Impure, UserModule


def study(
    module: nn.Module,
    example: Any,
    initial_state: InitialState | None,
    state_names: Sequence[str] | None,
    *,
    time_axis: bool | None,
    tolerance: float,
) -> tuple[UserModule, tuple[torch.Tensor, ...]]:
    """Find out how `module` is called and hold it against that.

    Args:
        example: as `export_module` takes it.
        time_axis: None: with a time axis if it runs so, else one timestep a call.
        tolerance: of its own outputs, whole and step by step.

    Returns:
        The module, and one timestep of each output, [batch, *out].

    Raises:
        ExportError: no way holds; the text is that of the likeliest one.
    """
    problems: list[ExportError] = []
    for order, leading in _ways(time_axis):
        # A module that mixes timesteps may still run on one: its softmax over time is then one over features.
        if order == "step" and any(isinstance(problem, Impure) for problem in problems):
            continue
        try:
            examples = Examples.of(module, example, leading)
            if time_axis is None and leading == 1 and not _may_be_one_timestep(examples):
                continue
            user = UserModule(find(module, examples, order, initial_state, state_names))
            return user, user.check(tolerance)
        except (Misfit, Impure) as problem:
            problems.append(problem)
    raise _likeliest(problems)


def _ways(time_axis: bool | None) -> list[tuple[Order, int]]:
    """The orders of axes to try, each with the number of the example's axes before a timestep's own."""
    if time_axis is None:
        return [("batch_time", 2), ("step", 2), ("time_batch", 2), ("step", 1)]
    return [("batch_time", 2), ("time_batch", 2)] if time_axis else [("step", 1)]


def _may_be_one_timestep(examples: Examples) -> bool:
    """Whether examples may be [batch, features]; those of more axes, and of tokens, would rather be sequences."""
    return all(
        len(shape) <= 1 and dtype.startswith("float")
        for shape, dtype in zip(examples.step_shapes, examples.dtypes, strict=True)
    )


def _likeliest(problems: list[ExportError]) -> ExportError:
    """The most informative error: that of a module that ran and broke the rules, else that of the first way."""
    impure = [problem for problem in problems if isinstance(problem, Impure)]
    if impure:
        return next((problem for problem in impure if problem.causes), impure[0])
    return problems[0]
