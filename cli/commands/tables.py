"""What a table of timesteps is: the names of its columns, and how they become a model's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamcell.client import Tensor


class TableError(Exception):
    """A file or an option is wrong in a way that the user can correct; the text names the place and says how."""


@dataclass(frozen=True)
class Columns:
    """The columns of a model's inputs, or of its outputs.

    Attributes:
        names: one for each column.
        known: True if they come from the data that the model was trained on; else they are made of the tensors' names.
    """

    names: tuple[str, ...]
    known: bool = False


def input_columns(tensors: Sequence[Tensor], card: Mapping[str, Any]) -> Columns:
    """The columns that the model reads: those of its training data, as its card tells them, or made-up ones."""
    return _columns(tensors, card, "columns")


def output_columns(tensors: Sequence[Tensor], card: Mapping[str, Any]) -> Columns:
    """The columns that the model gives: quantiles or values of the targets of its training data, or made-up ones."""
    quantiles = _columns(tensors, card, "outputs")
    return quantiles if quantiles.known else _columns(tensors, card, "targets")


def _columns(tensors: Sequence[Tensor], card: Mapping[str, Any], key: str) -> Columns:
    made = tuple(name for tensor in tensors for name in _made_up(tensor))
    data = (card.get("training") or {}).get("data") or {}
    told = data.get(key) if isinstance(data, Mapping) else None
    if isinstance(told, list) and len(told) == len(made) and all(isinstance(name, str) for name in told):
        return Columns(tuple(told), known=True)
    return Columns(made)


def _made_up(tensor: Tensor) -> list[str]:
    """`y` for a scalar per step, else `y_0`, `y_1`, …, in C order."""
    return [f"{tensor.name}_{i}" for i in range(width(tensor))] if tensor.step_shape else [tensor.name]


def width(tensor: Tensor) -> int:
    """The columns of one tensor."""
    return math.prod(tensor.step_shape)


def by_input(table: Any, inputs: Iterable[Tensor], *, cast: bool = False) -> dict[str, Any]:
    """Cut a table [T, columns] into {input name: array [T, *step_shape]}."""
    items, column = {}, 0
    for tensor in inputs:
        part = table[:, column : column + width(tensor)]
        column += width(tensor)
        items[tensor.name] = (part.astype(tensor.dtype) if cast else part).reshape(-1, *tensor.step_shape)
    return items
