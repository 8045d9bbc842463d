"""Which columns are the time axis, which are numbers and which are words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamcell.models.errors import DataError

from .grid import Grid
from .numbers import NoNumberError, are_missing, are_mostly_numbers, find_format, plain, to_numbers
from .options import TableOptions
from .shown import listed, shown
from .time_axis import Dates, TimeAxis, date_axis, increasing, number_axis, parse_dates, unix_dates

# Names of columns of dates, which may be written in digits alone.
_DATES = frozenset(("date", "day", "month", "time", "datetime", "timestamp", "period", "ds", "datum", "week"))
# Names of columns that count the rows or the years.
_COUNTS = frozenset(
    ("", "index", "id", "obs", "row", "rownames", "unnamed: 0", "t", "time", "year", "yr", "timestamp")
)
_PARTS = (("year", "yr"), ("quarter", "qtr"), ("month", "mon", "mo"), ("day",), ("hour",))
NO_TIME = ("none",)
# No year, and no month, day or hour, is a greater number: the seconds of these fit in 64 bits.
_LATEST = 1_000_000
# Characters of a column's name, which messages, the run's files and the model's card repeat.
LONGEST_NAME = 1000
# Columns renamed that are told one by one.
_TOLD = 20


@dataclass(frozen=True)
class Column:
    """One column that the model reads: its name and cells, object[rows], and bool[rows], which are missing."""

    name: str
    cells: NDArray[Any]
    missing: NDArray[np.bool_]


@dataclass(frozen=True)
class Roles:
    """What the columns of a file are.

    Attributes:
        axis: the time; None if no column says it.
        order: int64[rows], the rows in the order of time.
        numbers, words: the columns to read, in the file's order.
        decimal, thousands: how the numbers are written.
        notes: what the user should know.
    """

    axis: TimeAxis | None
    order: NDArray[np.int64]
    numbers: list[Column]
    words: list[Column]
    decimal: str
    thousands: str
    notes: list[str]


def find_roles(path: Path, grid: Grid, options: TableOptions) -> Roles:
    """What the columns of a file are.

    Raises:
        DataError: a name is too long, a column that is named is not there, times repeat or are missing, or numbers
            can be read in two ways.
    """
    notes: list[str] = []
    for place, name in enumerate(grid.names, 1):
        if len(name) > LONGEST_NAME:
            raise DataError(
                f"{path}: the name of column {place}, {shown(name)}, has {len(name)} characters, more than "
                f"{LONGEST_NAME}: see that a separator or a quote is not missing"
            )
    names = _named(grid.names, notes)
    columns = {
        name: Column(name, cells, are_missing(cells, options.missing))
        for name, cells in zip(names, grid.cells, strict=True)
    }
    for option, asked in (("columns", options.columns), ("drop", options.drop), ("time", options.time)):
        if unknown := [name for name in asked if name not in columns and asked != NO_TIME]:
            raise DataError(
                f"{path} has no column {', '.join(unknown)} (--{option}); it has {listed(columns)}"
            )
    kept = {name: column for name, column in columns.items() if name not in options.drop}
    present = [column.cells[~column.missing] for column in kept.values()]
    try:
        decimal, thousands = find_format(present, options.decimal, options.thousands)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    numeric = {
        name
        for name, column in kept.items()
        if not column.missing.all() and are_mostly_numbers(column.cells[~column.missing], decimal, thousands)
    }
    axis, used, order = _find_axis(path, grid, kept, numeric, options, (decimal, thousands), notes)
    if axis is not None and "" in kept and "" in numeric and "" not in used:
        used = (*used, "")
        notes.append("the column without a name is left out: an index beside the time")
    dates = [
        name
        for name, column in kept.items()
        if name not in (*used, *numeric, *options.columns) and _holds_dates(column, options)
    ]
    if dates:
        used = (*used, *dates)
        notes.append(
            f"the dates of {listed([repr(name) for name in dates])} are left out: they are no numbers"
        )
    read = [c for n, c in kept.items() if n not in used and (not options.columns or n in options.columns)]
    for column in read:
        if column.missing.all() and len(column.cells):
            raise DataError(f"{path}: column {column.name!r} has no values at all: --drop {column.name}")
    return Roles(
        axis,
        order,
        [column for column in read if column.name in numeric],
        [column for column in read if column.name not in numeric],
        decimal,
        thousands,
        notes,
    )


def _holds_dates(column: Column, options: TableOptions) -> bool:
    cells = column.cells[~column.missing]
    return parse_dates(cells, digits=False, day_first=options.day_first) is not None


def _named(names: Sequence[str], notes: list[str]) -> list[str]:
    """Names that are all there and all different; the first may stay empty, as of an index."""
    given: dict[str, None] = {}
    counts: dict[str, int] = {}
    renamed: list[str] = []
    for place, name in enumerate(names):
        unique = name if name or not place else f"column{place + 1}"
        while unique in given:
            counts[name] = counts.get(name, 1) + 1
            unique = f"{name}.{counts[name]}"
        if unique != name:
            renamed.append(f"column {place + 1}, {name!r} in the header, is read as {unique!r}")
        given[unique] = None
    notes += renamed[:_TOLD]
    if len(renamed) > _TOLD:
        notes.append(f"{len(renamed) - _TOLD} more columns are renamed likewise")
    return list(given)


def _find_axis(
    path: Path,
    grid: Grid,
    columns: dict[str, Column],
    numeric: set[str],
    options: TableOptions,
    written: tuple[str, str],
    notes: list[str],
) -> tuple[TimeAxis | None, tuple[str, ...], NDArray[np.int64]]:
    """The axis, the columns that it is made of and the order of the rows."""
    rows = len(grid.lines)
    order = np.arange(rows)
    if options.time == NO_TIME or rows < 2:
        return None, (), order
    asked = options.time or _parts(columns, numeric)
    if asked:
        _no_gaps(path, grid, [columns[name] for name in asked])
    if len(asked) > 1:
        dates = _assembled([columns[name] for name in asked], written)
        if dates is not None and (options.time or increasing(dates) or increasing(dates[::-1])):
            return _ordered(path, grid, ", ".join(asked), dates, notes), asked, _order_of(dates)
        if options.time:
            raise DataError(f"{path}: columns {', '.join(asked)} are no year, month, day and hour")
    whole = {name: columns[name] for name in options.time or columns if not columns[name].missing.any()}
    for name, column in whole.items():
        hinted = bool(options.time) or name.strip().lower() in _DATES
        dates = parse_dates(column.cells, digits=hinted, day_first=options.day_first)
        if dates is not None:
            return _ordered(path, grid, name, dates, notes), (name,), _order_of(dates)
    for name, column in whole.items():
        counts = name.strip().lower() in _COUNTS and name not in options.columns
        if name in numeric and (options.time or counts):
            try:
                numbers = to_numbers(column.cells, column.missing, *written)
            except NoNumberError as error:
                if not options.time:
                    continue  # it is read as numbers, and then the cell is told
                line, cell = grid.lines[error.row], column.cells[error.row]
                raise DataError(f"{path}, line {line}, column {name!r}: {shown(cell)} is no time") from None
            if np.isfinite(numbers).all() and (options.time or increasing(numbers)):
                unix = unix_dates(numbers) if name.strip().lower() in _DATES or options.time else None
                times: NDArray[Any] = numbers if unix is None else unix
                return _ordered(path, grid, name, times, notes), (name,), _order_of(times)
    if options.time:
        cell = columns[options.time[0]].cells[0]
        raise DataError(
            f"{path}: column {options.time[0]!r} holds no dates, such as {shown(cell)}; --time none takes the rows in "
            "their order"
        )
    return None, (), order


def _parts(columns: dict[str, Column], numeric: set[str]) -> tuple[str, ...]:
    """The columns named year, month and so on, if there is a year and at least one more."""
    lower = {name.strip().lower(): name for name in columns}
    found = [next((lower[each] for each in part if each in lower), None) for part in _PARTS]
    names = tuple(name for name in found if name is not None)
    return names if found[0] is not None and len(names) > 1 and found[0] in numeric else ()


def _assembled(parts: Sequence[Column], written: tuple[str, str]) -> Dates | None:
    """Dates of columns of years and quarters, months, days and hours; None if they are none."""
    years = months = days = hours = None
    for column in parts:
        name = column.name.strip().lower()
        values = _integers(column.cells, written)
        if values is None and name in _PARTS[2]:
            values = _month_names(column.cells)
        if values is None:
            return None
        if name in _PARTS[0]:
            years = values
        elif name in _PARTS[1]:
            months = 3 * (values - 1)
        elif name in _PARTS[2]:
            months = values - 1
        elif name in _PARTS[3]:
            days = values - 1
        elif name in _PARTS[4]:
            hours = values
        else:
            return None
    if years is None:
        return None
    dates = (
        ((years - 1970) * 12 + (0 if months is None else months))
        .astype("datetime64[M]")
        .astype("datetime64[s]")
    )
    for values, seconds in ((days, 86_400), (hours, 3600)):
        if values is not None:
            dates = dates + (values * seconds).astype("timedelta64[s]")
    return dates


def _integers(cells: NDArray[Any], written: tuple[str, str]) -> NDArray[np.int64] | None:
    found = [plain(cell, *written) for cell in cells]
    if any(text is None for text in found):
        return None
    values = np.array([float(text or 0) for text in found])
    whole = (values == np.round(values)) & (np.abs(values) <= _LATEST)
    return values.astype(np.int64) if whole.all() else None


def _month_names(cells: NDArray[Any]) -> NDArray[np.int64] | None:
    names = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    short = [cell.strip().lower()[:3] for cell in cells]
    return np.array([names.index(name) + 1 for name in short]) if set(short) <= set(names) else None


def _no_gaps(path: Path, grid: Grid, columns: Sequence[Column]) -> None:
    for column in columns:
        if column.missing.any():
            line = grid.lines[int(np.flatnonzero(column.missing)[0])]
            raise DataError(
                f"{path}, line {line}, column {column.name!r}: the time is missing; --time none takes the rows in "
                "their order"
            )


def _order_of(times: NDArray[Any]) -> NDArray[np.int64]:
    return np.argsort(times, kind="stable")


def _ordered(path: Path, grid: Grid, name: str, times: NDArray[Any], notes: list[str]) -> TimeAxis:
    """The axis of the times in their order, with a note if that is not the file's."""
    order = _order_of(times)
    sorted_times = times[order]
    same = np.flatnonzero(sorted_times[1:] == sorted_times[:-1])
    if len(same):
        lines = sorted(int(grid.lines[order[same[0] + place]]) for place in (0, 1))
        raise DataError(
            f"{path}, lines {lines[0]} and {lines[1]}: the time {sorted_times[same[0]]} (column {name!r}) is there "
            f"twice ({len(same)} such rows). A file of several series must be split; --time none takes the rows in "
            "their order"
        )
    if not increasing(times):
        newest = increasing(times[::-1])
        notes.append(
            f"the rows are newest first: read in the order of {name!r}"
            if newest
            else f"the rows are not in the order of {name!r}: sorted"
        )
    if np.issubdtype(times.dtype, np.datetime64):
        return date_axis(name, sorted_times)
    return number_axis(name, sorted_times)
