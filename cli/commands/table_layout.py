"""Which of a table's columns goes where: by the names in its header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, TypeAlias

from .tables import Columns, TableError

# How columns are found: by their names in the model's order, by their names in any order, or by their places.
Match: TypeAlias = Literal["names", "any-order", "position"]

SEPARATORS = (",", ";", "\t", "|")
# Cells without a value.
GAP_WORDS = frozenset(("", "na", "n/a", "nan", "null", "none"))
_MOST_NAMES = 12
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")


def number(cell: str, kind: type[float] | type[int], *, comma: bool) -> float | int:
    """The number in a cell. `comma`: the decimal sign may be a comma, because the separator is none.

    Raises:
        ValueError: it is none.
    """
    if comma and kind is float and _DECIMAL_COMMA.fullmatch(cell.strip()):
        cell = cell.replace(",", ".")
    return kind(cell)


def _is_number(cell: str) -> bool:
    with suppress(ValueError):
        number(cell, float, comma=True)
        return True
    return False


def separator_of(line: str, columns: Columns) -> str:
    """What separates the cells of a table's first line: that which yields the model's names or number of columns."""
    for separator in SEPARATORS:
        cells = [cell.strip().strip('"') for cell in line.strip().split(separator)]
        if set(columns.names) <= set(cells):
            return separator
    for separator in SEPARATORS:
        if len(columns.names) > 1 and line.count(separator) == len(columns.names) - 1:
            return separator
    return max(SEPARATORS, key=line.count) if columns.known else ","


class Layout:
    """Takes the model's columns out of rows.

    Attributes:
        is_header: whether the first row is a line of names.
        unused: names of the table's columns that the model does not take.
    """

    def __init__(self, first: Sequence[str], columns: Columns, match: Match, place: str) -> None:
        """Read the first row, at `place` ("FILE:LINE").

        Raises:
            TableError: its names are not the model's, or not in its order; or there are too few or too many columns.
        """
        cells = [cell.strip() for cell in first]
        self.unused: list[str] = []
        self._width = len(cells)
        self._taken: list[int] | None = None
        self.is_header = any(name in columns.names for name in cells) or (
            not any(map(_is_number, cells)) and any(cell.lower() not in GAP_WORDS for cell in cells)
        )
        if match != "position" and self.is_header and (columns.known or set(cells) & set(columns.names)):
            self._by_name(cells, columns, match, place)
        elif len(cells) != len(columns.names):
            raise TableError(
                f"{place}: expected {len(columns.names)} columns, got {len(cells)}: the model takes "
                f"{_listed(columns.names)}; give exactly these, or a header with these names among others"
            )

    def _by_name(self, cells: list[str], columns: Columns, match: Match, place: str) -> None:
        wanted = columns.names
        if missing := [name for name in wanted if name not in cells]:
            raise TableError(
                f"{place}: no column {_listed(missing)}: the model takes {_listed(wanted)}, the header names "
                f"{_listed(cells)}; correct the header, or take the columns as they stand by --match position"
            )
        if twice := [name for name in wanted if cells.count(name) > 1]:
            raise TableError(f"{place}: more than one column is named {_listed(twice)}: rename one of them")
        taken = [cells.index(name) for name in wanted]
        if match == "names" and taken != sorted(taken):
            order = [name for name in cells if name in wanted]
            raise TableError(
                f"{place}: the columns are in another order than the model's: expected {_listed(wanted)}, got "
                f"{_listed(order)}; --match any-order takes them by their names all the same"
            )
        self.unused = [name for name in cells if name not in wanted]
        if taken != list(range(len(cells))):
            self._taken = taken

    def is_blank(self, row: list[str]) -> bool:
        """True for a line without any cell; a table of one column has a cell even if it is empty."""
        return not row or (len(row) == 1 < self._width and not row[0].strip())

    def take(self, row: list[str], place: str) -> list[str]:
        """The cells of the model's columns, in its order.

        Raises:
            TableError: the row has more or fewer cells than the first one.
        """
        if len(row) != self._width:
            raise TableError(
                f"{place}: expected {self._width} columns, got {len(row)}: each row needs as many as the first"
            )
        return row if self._taken is None else [row[index] for index in self._taken]


def _listed(names: Sequence[str]) -> str:
    few = ", ".join(names[:_MOST_NAMES])
    return f"{few}, … ({len(names)} in all)" if len(names) > _MOST_NAMES else few
