"""The data set `csv`: a numeric CSV file as one multivariate series, with next-step forecasts of chosen columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from streamcell.models.errors import DataError

from .sequences import Floats, SequenceData, Series, Standard

# Of the rows, in the order of the file.
TRAIN, VALID = 0.7, 0.15
# A part needs a row to read and a row to predict.
LEAST_ROWS = 2
LARGEST = float(np.finfo(np.float32).max)


def read_table(path: Path) -> tuple[list[str], Floats]:
    """Header and values float32[rows, columns] of a CSV file.

    Raises:
        DataError: no file, no header, a header with an empty or repeated name, a row of another width, a
            value that is missing, not a number or not finite in float32; the text names line and column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            rows = [_numbers(path, reader.line_num, header, row) for row in reader if row]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from error
    return header, np.array(rows, np.float32).reshape(len(rows), len(header))


def load_table(path: Path, targets: Sequence[str] = ()) -> SequenceData:
    """The series: x is all columns of a row, y the `targets` (none named: all columns) of the row after it.

    The first 70 % of the rows are for training, the next 15 % for validation, the last 15 % for the test.
    Mean and deviation come from the training rows alone; a column that is constant there has deviation 1.

    Raises:
        DataError: as `read_table`; or a target is no column, or the rows are too few to be split.
    """
    header, values = read_table(path)
    names = list(targets) or header
    if unknown := [name for name in names if name not in header]:
        raise DataError(f"{path} has no column {', '.join(unknown)}; it has {', '.join(header)}")
    if len(set(names)) < len(names):
        raise DataError(f"a target is named twice: {', '.join(names)}")
    cut = [0, int(len(values) * TRAIN), int(len(values) * (TRAIN + VALID)), len(values)]
    if min(np.diff(cut)) < LEAST_ROWS:
        raise DataError(f"{path} has {len(values)} rows, too few to split 70/15/15; at least 11 are needed")
    chosen = [header.index(name) for name in names]
    parts = [values[start:end] for start, end in pairwise(cut)]
    series = [[Series(part[:-1], part[1:, chosen])] for part in parts]
    inputs = _standard(parts[0])
    return SequenceData(
        "csv",
        train=series[0],
        valid=series[1],
        test=series[2],
        distribution="real",
        input_standard=inputs,
        output_standard=Standard(inputs.mean[chosen], inputs.std[chosen]),
        continuous=True,
        about={"source": path.name, "columns": header, "targets": names},
    )


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise DataError(f"{path} is empty; expected a header line with column names")
    if "" in header:
        raise DataError(f"{path}: column {header.index('') + 1} has no name in the header line")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path}: columns named more than once: {', '.join(twice)}")
    if all(_is_number(name) for name in header):
        raise DataError(f"{path}: the first line holds numbers; expected a header line with column names")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(path: Path, line: int, header: list[str], row: list[str]) -> list[float]:
    if len(row) != len(header):
        raise DataError(f"{path}, line {line}: {len(row)} values; the header names {len(header)} columns")
    return [
        _number(f"{path}, line {line}, column {name!r}", text) for name, text in zip(header, row, strict=True)
    ]


def _number(where: str, text: str) -> float:
    if not text.strip():
        raise DataError(f"{where}: the value is missing")
    if not _is_number(text):
        raise DataError(f"{where}: {text!r} is not a number")
    value = float(text)
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise DataError(f"{where}: {text!r} is not a finite float32")
    return value


def _standard(rows: Floats) -> Standard:
    mean, std = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    flat = std <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    return Standard(mean.astype(np.float32), np.where(flat, 1.0, std).astype(np.float32))
