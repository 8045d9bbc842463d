"""A CSV file as numbers on a time axis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamcell.models.data.sequences import Floats
from streamcell.models.errors import DataError

from .gaps import close_gaps
from .grid import Grid, read_grid
from .numbers import NoNumberError, to_numbers
from .options import FOUND, TableOptions
from .roles import LONGEST_NAME, Column, Roles, find_roles
from .shown import listed, shown
from .text import read_text
from .time_axis import TimeAxis

LARGEST = float(np.finfo(np.float32).max)
# Different words of one column; each becomes an input.
MOST_LEVELS = 64


@dataclass(frozen=True)
class Table:
    """A file that is read.

    Attributes:
        columns: names of the columns.
        values: float32[timesteps, columns].
        missing: bool[timesteps, columns], values that the file does not have and that were filled.
        axis: the time; None if no column says it.
        notes: what was found and done, for the user.
        about: how the file is written, its time axis and its categories, as JSON values.
    """

    columns: list[str]
    values: Floats
    missing: NDArray[np.bool_]
    axis: TimeAxis | None
    notes: list[str]
    about: dict[str, Any]


def read_table(path: Path, options: TableOptions = FOUND) -> Table:
    """Read a CSV file; finds in the file what `options` do not say.

    Raises:
        ConfigError: an option is out of range.
        DataError: the file cannot be read, or the user must choose; the text names the place and the option.
    """
    options.check()
    text = read_text(path, options)
    grid = read_grid(path, text, options)
    if not len(grid.lines):
        raise DataError(f"{path} has no rows below its header")
    roles = find_roles(path, grid, options)
    values, names, levels = _values(path, grid, roles, options)
    lines = grid.lines[roles.order]
    filled = close_gaps(path, values[roles.order], names, lines, roles.axis, options)
    data, missing = filled.values, filled.missing
    masked: list[str] = []
    if options.gaps == "mask":
        with_gaps = np.flatnonzero(missing.any(axis=0))
        masked = [f"{names[place]} missing" for place in with_gaps]
        data = np.concatenate([data, missing[:, with_gaps]], axis=1)
        missing = np.concatenate([missing, np.zeros((len(missing), len(masked)), np.bool_)], axis=1)
    about: dict[str, Any] = {
        "separator": grid.separator,
        "decimal": roles.decimal,
        "thousands": roles.thousands,
        "encoding": text.encoding,
        "gaps": options.gaps,
        "filled": int(missing.sum()),
        "time": None if roles.axis is None else roles.axis.to_json(),
    }
    about |= {"categories": levels} if levels else {}
    about |= {"masks": masked} if masked else {}
    notes = [*_told(text.encoding, len(text.comments), roles), *roles.notes, *filled.notes]
    return Table([*names, *masked], data.astype(np.float32), missing, roles.axis, notes, about)


def _values(
    path: Path, grid: Grid, roles: Roles, options: TableOptions
) -> tuple[NDArray[np.float64], list[str], dict[str, list[str]]]:
    """float64[rows, columns] in the file's order, the columns' names, and the words of each category."""
    if roles.words and options.categories == "refuse":
        column = roles.words[0]
        row = int(np.flatnonzero(~column.missing)[0])
        others = [each.name for each in roles.words]
        raise DataError(
            f"{path}, line {grid.lines[row]}, column {column.name!r}: {shown(column.cells[row])} is not a number. "
            f"Say --categories one-hot to make inputs of the words in {listed([repr(name) for name in others])}, or "
            f"--drop {','.join(others)!r}"
        )
    if not roles.numbers and not roles.words:
        raise DataError(f"{path} has no column to read beside the time; --time none reads all of them")
    columns: list[NDArray[np.float64]] = []
    names: list[str] = []
    levels: dict[str, list[str]] = {}
    for each in roles.numbers:
        names.append(each.name)
        columns.append(_numbers(path, grid, roles, each))
    for each in roles.words:
        words = _words(path, each)
        levels[each.name] = words
        # Not an array of texts, where each would take the longest one's room.
        text = np.array([cell.strip() for cell in each.cells], object)
        for word in words:
            names.append(f"{each.name}={word}")
            columns.append(np.where(each.missing, np.nan, text == word))
    return np.column_stack(columns), names, levels


def _numbers(path: Path, grid: Grid, roles: Roles, column: Column) -> NDArray[np.float64]:
    try:
        values = to_numbers(column.cells, column.missing, roles.decimal, roles.thousands)
    except NoNumberError as error:
        raise DataError(
            f"{_place(path, grid, column, error.row)} is not a number. If it means that there is no value, say "
            f"--missing {shown(column.cells[error.row])}"
        ) from None
    bad = ~column.missing & ~(np.abs(values) <= LARGEST)
    if bad.any():
        raise DataError(f"{_place(path, grid, column, int(np.flatnonzero(bad)[0]))} is not a finite float32")
    return values


def _place(path: Path, grid: Grid, column: Column, row: int) -> str:
    return f"{path}, line {grid.lines[row]}, column {column.name!r}: {shown(column.cells[row])}"


def _words(path: Path, column: Column) -> list[str]:
    words = sorted({cell.strip() for cell in column.cells[~column.missing]})
    if long := next((word for word in words if len(word) > LONGEST_NAME), None):
        raise DataError(
            f"{path}: column {column.name!r} has {shown(long)}, {len(long)} characters, more than {LONGEST_NAME}: "
            f"no word that an input can be named by: --drop {column.name!r}"
        )
    if len(words) > MOST_LEVELS:
        raise DataError(
            f"{path}: column {column.name!r} has {len(words)} different words, more than {MOST_LEVELS}: "
            f"--drop {column.name!r}"
        )
    return words


def _told(encoding: str, comments: int, roles: Roles) -> list[str]:
    notes = []
    if encoding == "cp1252":
        notes.append("the file is not UTF-8: read as cp1252 (--encoding)")
    if comments:
        notes.append(f"{comments} comment line{'s'[: comments > 1]} left out")
    if (roles.decimal, roles.thousands) != (".", ""):
        notes.append(f"numbers are read with decimal {roles.decimal!r} and thousands {roles.thousands!r}")
    axis = roles.axis
    if axis is not None and axis.places is None:
        notes.append(
            f"the steps of {axis.name!r} are irregular, from {axis.shortest} to {axis.longest} (median {axis.step}): "
            "every row is a timestep, whatever the time before it"
        )
    elif axis is not None:
        notes.append(f"time axis {axis.name!r}: {axis.step} a row, {axis.first} to {axis.last}")
    return notes
