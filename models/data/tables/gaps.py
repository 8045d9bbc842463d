"""Missing cells and missing rows: refused, or filled as the user chooses, with a note."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamcell.models.errors import DataError

from .options import TableOptions
from .shown import listed
from .time_axis import TimeAxis

_WAYS = "Choose --gaps forward, linear or mask"


@dataclass(frozen=True)
class Filled:
    """Values without gaps.

    Attributes:
        values: float64[timesteps, columns].
        missing: bool[timesteps, columns], which of them the file does not have.
        notes: what was filled.
    """

    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    notes: list[str]


def close_gaps(
    path: Path,
    values: NDArray[np.float64],
    names: list[str],
    lines: NDArray[np.int64],
    axis: TimeAxis | None,
    options: TableOptions,
) -> Filled:
    """Values with a row for every step of the axis, and no cell without a value.

    Args:
        values: float64[rows, columns] in the order of time, NaN if there is no value.
        lines: int64[rows], where each row is in the file.

    Raises:
        DataError: something is missing and the option is "refuse", or more rows are than are there; the text names
            the first place and the ways on.
    """
    missing = np.isnan(values)
    lacking = axis.lacking if axis is not None else 0
    if options.gaps == "refuse":
        _refuse(path, missing, names, lines, axis)
    notes = []
    if axis is not None and axis.places is not None and lacking:
        if lacking > len(values):
            raise DataError(
                f"{path}: {_count(lacking, 'missing row')} by {axis.name!r}, more than the {len(values)} that are "
                "there: see that no date is wrong, or say --time none to take the rows as if none were missing"
            )
        whole = np.full((int(axis.places[-1]) + 1, values.shape[1]), np.nan)
        whole[axis.places] = values
        values, missing = whole, np.isnan(whole)
        notes.append(
            f"{_count(lacking, 'missing row')} of {len(whole)} by {axis.name!r}: filled ({options.gaps})"
        )
    cells = int(missing.sum()) - lacking * values.shape[1]
    if cells:
        notes.append(f"{_count(cells, 'missing cell')}: filled ({options.gaps})")
    filled = np.column_stack([_fill(column, options.gaps) for column in values.T])
    if first := [name for name, column in zip(names, missing.T, strict=True) if column[0]]:
        notes.append(f"nothing comes before the first gap of {listed(first)}: filled with the first value")
    return Filled(filled, missing, notes)


def _refuse(
    path: Path,
    missing: NDArray[np.bool_],
    names: list[str],
    lines: NDArray[np.int64],
    axis: TimeAxis | None,
) -> None:
    if missing.any():
        row, column = (int(each) for each in np.argwhere(missing)[0])
        if missing[row].all() and len(names) > 1:
            where = f"line {lines[row]}: the row is empty"
        else:
            where = f"line {lines[row]}, column {names[column]!r}: the value is missing"
        count, columns = int(missing.sum()), int(missing.any(axis=0).sum())
        told = f"{_count(count, 'missing value')} in {_count(columns, 'column')}"
        raise DataError(f"{path}, {where} ({told}). {_WAYS}, or leave columns out with --drop")
    if axis is not None and axis.places is not None and axis.lacking:
        row = int(np.flatnonzero(np.diff(axis.places) > 1)[0])
        raise DataError(
            f"{path}, line {lines[row + 1]}: missing before it: "
            f"{_count(int(axis.places[row + 1] - axis.places[row]) - 1, 'row')}; a step of {axis.name!r} is "
            f"{axis.step} ({_count(axis.lacking, 'missing row')} in all). {_WAYS}, or "
            "--time none to take the rows as if none were missing"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s'[: number != 1]}"


def _fill(column: NDArray[np.float64], way: str) -> NDArray[np.float64]:
    """float64[timesteps]; before the first value, the first value."""
    there = np.flatnonzero(~np.isnan(column))
    if len(there) == len(column):
        return column
    if way == "linear":
        return np.interp(np.arange(len(column)), there, column[there])
    before = np.searchsorted(there, np.arange(len(column)), side="right") - 1
    return column[there[np.maximum(before, 0)]]
