"""Lines of text as columns of cells: which character separates them, and whether the first line names them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamcell.models.errors import DataError

from .numbers import plain
from .options import TableOptions
from .text import Text

# Spaces last: other files have them inside cells.
SEPARATORS = (",", ";", "\t", "|", " ")
_SAMPLE = 200


@dataclass(frozen=True)
class Grid:
    """A file's cells.

    Attributes:
        names: of the columns, as the file has them; "" if a column has no name.
        cells: object[rows] texts of each column.
        lines: int64[rows], each row's line in the file, counted from 1.
        separator: between the cells.
        header: whether the names are the file's own.
    """

    names: list[str]
    cells: list[NDArray[Any]]
    lines: NDArray[np.int64]
    separator: str
    header: bool


def read_grid(path: Path, text: Text, options: TableOptions) -> Grid:
    """The cells of a file.

    A row with fewer cells than the others lacks its last ones, and an empty line lacks all: gaps, which the caller
    must deal with.

    Raises:
        DataError: there is no row, a row has more cells than there are columns, or one of the first lines has a cell
            that is too long.
    """
    try:
        return _read(path, text, options)
    except csv.Error as error:
        raise DataError(
            f"{path} has a line that holds no cells: {error}; see that quotes are closed"
        ) from error


def _read(path: Path, text: Text, options: TableOptions) -> Grid:
    if not text.lines:
        raise DataError(f"{path} is empty; expected a header line with column names")
    separator = options.delimiter or find_separator(text.lines, options.quote)
    first = cells_of(text.lines[0], separator, options.quote)
    heading = cells_of(text.heading, separator, options.quote) if text.heading else []
    header = options.header
    if header is None:
        header = not all(_says_number(cell) for cell in first)
        if not header and len(heading) == len(first) and not any(map(_says_number, heading)):
            # numpy.savetxt writes the names as a comment.
            return Grid(heading, *_body(path, text, 0, separator, len(first), options), separator, True)
        if not header:
            raise DataError(
                f"{path}: the first line holds numbers; expected a header line with column names. "
                "Say --no-header if the file has none: the columns are then column1, column2, …"
            )
    width = len(first)
    cells, lines = _body(path, text, int(header), separator, width, options)
    names = first if header else [f"column{place + 1}" for place in range(width)]
    if len(cells) > width:
        # R writes no name above the column of the rows' names.
        names = ["", *names]
    return Grid(names, cells, lines, separator, header)


def find_separator(lines: Sequence[str], quote: str) -> str:
    """The character that cuts most lines into as many cells as the first; if two do, the one that yields more cells."""
    sample = [line for line in lines[:_SAMPLE] if line.strip()]
    # One column: of decimal commas, if there are commas below the header alone.
    best, found = (False, 0.0, 0), "," if "," in sample[0] or not any("," in line for line in sample) else ";"
    for separator in SEPARATORS:
        if separator == " " and best[1] > 0:
            break
        widths = [len(cells_of(line, separator, quote)) for line in sample]
        usual = max(set(widths[1:] or widths), key=(widths[1:] or widths).count)
        # R's files have no name above the first column.
        if usual > 1 and (widths[0] == usual or 1 < widths[0] == usual - 1):
            share = sum(width == usual for width in widths[1:]) / max(1, len(widths) - 1)
            if (widths[0] == usual, share, usual) > best:
                best, found = (widths[0] == usual, share, usual), separator
    return found


def cells_of(line: str, separator: str, quote: str) -> list[str]:
    """The cells of one line."""
    spaces = separator == " "
    reader = csv.reader(
        [line.strip() if spaces else line],
        delimiter=separator,
        quotechar=quote,
        skipinitialspace=True,
    )
    return [cell.strip() for cell in next(reader, [])]


def _says_number(cell: str) -> bool:
    return any(plain(cell, *each) is not None for each in ((".", ""), (",", ""), (".", ","), (",", ".")))


def _body(
    path: Path, text: Text, skip: int, separator: str, width: int, options: TableOptions
) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """The columns behind the first `skip` lines: `width` of them, or one more if every row has one more cell."""
    import pandas as pd

    lines, numbers = text.lines[skip:], np.array(text.numbers[skip:], np.int64)
    if not lines:
        return [np.empty(0, object) for _ in range(width)], numbers
    try:
        frame = pd.read_csv(
            io.StringIO("\n".join(lines)),
            sep=r"\s+" if separator == " " else separator,
            header=None,
            names=range(width + 1),
            index_col=False,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            quotechar=options.quote,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except (pd.errors.ParserError, ValueError) as error:
        raise DataError(_wider(path, text, skip, separator, width, options) or f"{path}: {error}") from error
    columns = [frame[place].to_numpy(dtype=object) for place in range(width + 1)]
    if len(frame) != len(numbers):
        # Cells with line ends inside: a row's line is where its first cell begins, which is not known any more.
        numbers = np.arange(len(frame)) + numbers[0]
    more = np.fromiter((bool(cell.strip()) for cell in columns[width]), np.bool_, len(frame))
    if more.all():
        return columns, numbers
    if more.any():
        row = int(np.flatnonzero(more)[0])
        raise DataError(_too_wide(path, int(numbers[row]), width + 1, width))
    return columns[:width], numbers


def _wider(
    path: Path, text: Text, skip: int, separator: str, width: int, options: TableOptions
) -> str | None:
    for line, number in zip(text.lines[skip:], text.numbers[skip:], strict=True):
        found = len(cells_of(line, separator, options.quote))
        if found > width + 1:
            return _too_wide(path, number, found, width)
    return None


def _too_wide(path: Path, line: int, found: int, width: int) -> str:
    return (
        f"{path}, line {line}: {found} values; the header names {width} columns. "
        "If the file has another separator or comment lines, say --separator or --comment"
    )
