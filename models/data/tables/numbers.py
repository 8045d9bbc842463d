"""Cells as numbers: which cells have no value, which character is the decimal point and which groups thousands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamcell.models.errors import DataError

from .shown import shown

# Cells that mean "no value"; the comparison leaves case out.
MISSING = frozenset(
    ("", "na", "n/a", "nan", "null", "none", "nil", "missing", "-", "--", "?", ".", "#n/a", "#na", "<na>")
)
# (decimal, thousands), the likelier before the less likely.
_FORMATS = (
    (".", ""),
    (",", ""),
    (".", ","),
    (",", "."),
    (".", " "),
    (",", " "),
    (".", "\u00a0"),
    (",", "\u00a0"),
    (".", "\u202f"),
    (",", "\u202f"),
    (".", "'"),
    (",", "'"),
)
_PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_NOT_FINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_TRUTHS = {"true": "1", "false": "0"}
# Cells of a column that the format is found from.
_SAMPLE = 2000


def are_missing(cells: NDArray[Any], further: Sequence[str]) -> NDArray[np.bool_]:
    """bool[rows]: which of object[rows] texts mean "no value"."""
    tokens = MISSING | {token.strip().lower() for token in further}
    return np.fromiter((cell.strip().lower() in tokens for cell in cells), np.bool_, len(cells))


def plain(cell: str, decimal: str, thousands: str) -> str | None:
    """The number as Python writes it; None if the cell is no number in this format.

    Thousands are groups of exactly three digits, so that "1,5" is never 15.
    """
    text = cell.strip()
    text = _TRUTHS.get(text.lower(), text)
    if _NOT_FINITE.fullmatch(text):
        return text
    if thousands and thousands in text:
        whole, point, rest = text.partition(decimal)
        groups = whole.lstrip("+-").split(thousands)
        if not (1 <= len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:])):
            return None
        text = whole.replace(thousands, "") + point + rest
    if decimal != ".":
        if "." in text:
            return None
        text = text.replace(decimal, ".", 1)
    return text if _PLAIN.fullmatch(text) else None


def find_format(columns: Sequence[NDArray[Any]], decimal: str, thousands: str) -> tuple[str, str]:
    """The decimal point and the character of thousands with which most columns are numbers.

    Args:
        columns: object[rows] texts, without those that mean "no value".
        decimal, thousands: as told; "": find it.

    Raises:
        DataError: numbers such as 1,234 can be read in two ways.
    """
    formats = [
        (point, group)
        for point, group in _FORMATS
        if decimal in ("", point) and thousands in ("", group) and point != group
    ]
    formats = formats or [(decimal or ("," if thousands == "." else "."), thousands)]
    samples = [column[:_SAMPLE] for column in columns if len(column)]
    counts = [sum(_fits(sample, *each) for sample in samples) for each in formats]
    best = formats[counts.index(max(counts, default=0))]
    if best == (",", "") and not decimal and counts[formats.index((".", ","))] == max(counts):
        cell = next(cell for sample in samples if _fits(sample, *best) for cell in sample if "," in cell)
        raise DataError(
            f"{shown(cell)} can be read in two ways: say --decimal ',' or --thousands ',' for which it is"
        )
    return best


def _fits(cells: NDArray[Any], decimal: str, thousands: str) -> bool:
    return all(plain(cell, decimal, thousands) is not None for cell in cells)


def are_mostly_numbers(cells: NDArray[Any], decimal: str, thousands: str) -> bool:
    """Whether at least nine in ten texts are numbers: then one that is none is a fault, and no word."""
    if (decimal, thousands) == (".", "") and np.mean(~np.isnan(_usual(cells))) >= 0.9:
        return True
    return bool(sum(plain(cell, decimal, thousands) is not None for cell in cells) >= 0.9 * len(cells))


def _usual(cells: NDArray[Any]) -> NDArray[np.float64]:
    """float64[rows] of texts in Python's format; NaN for others."""
    import pandas as pd

    return np.asarray(pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce"), np.float64).copy()


def to_numbers(
    cells: NDArray[Any], missing: NDArray[np.bool_], decimal: str, thousands: str
) -> NDArray[np.float64]:
    """float64[rows], NaN if there is no value.

    Raises:
        NoNumberError: a cell is no number; it says which row.
    """
    values = _usual(cells) if (decimal, thousands) == (".", "") else None
    if values is not None and not np.isnan(values[~missing]).any():
        values[missing] = np.nan
        return values
    values = np.full(len(cells), np.nan)
    for row in np.flatnonzero(~missing):
        text = plain(cells[row], decimal, thousands)
        if text is None:
            raise NoNumberError(int(row))
        values[row] = float(text)
    return values


class NoNumberError(ValueError):
    """A cell that is no number, by its row."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row
