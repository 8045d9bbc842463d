"""The data set `csv`: a CSV file as one multivariate series, with next-step forecasts of chosen columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamcell.models.errors import DataError

from .sequences import Floats, SequenceData, Series, Standard
from .tables.options import FOUND, TableOptions
from .tables.shown import listed
from .tables.table import Table, read_table

# Of the rows, in the order of time.
TRAIN, VALID = 0.7, 0.15
# A part needs a row to read and a row to predict.
LEAST_ROWS = 2
# Rows before a part that a model may read first, as a session's client has sent them: nothing is asked of it there.
WARM_UP = 512


def load_table(path: Path, targets: Sequence[str] = (), options: TableOptions = FOUND) -> SequenceData:
    """The series: x is all columns of a row, y the `targets` (none named: all columns) of the row after it.

    The first 70 % of the rows are for training, the next 15 % for validation, the last 15 % for the test. Before the
    validation and the test part come up to `WARM_UP` rows of the parts before them, without targets. A value that
    the file does not have is no target either. Mean and deviation come from the training rows alone; a column that
    is constant there has deviation 1.

    Raises:
        DataError: as `read_table`; or a target is no column, or the rows are too few to be split.
    """
    table = read_table(path, options)
    names = list(targets) or [name for name in table.columns if name not in table.about.get("masks", ())]
    if unknown := [name for name in names if name not in table.columns]:
        raise DataError(f"{path} has no column {', '.join(unknown)}; it has {listed(table.columns)}")
    if len(set(names)) < len(names):
        raise DataError(f"a target is named twice: {', '.join(names)}")
    rows = len(table.values)
    cut = [0, int(rows * TRAIN), int(rows * (TRAIN + VALID)), rows]
    if min(np.diff(cut)) < LEAST_ROWS:
        raise DataError(f"{path} has {rows} rows, too few to split 70/15/15; at least 11 are needed")
    chosen = [table.columns.index(name) for name in names]
    notes = list(table.notes)
    if empty := _without_values(table, chosen, cut):
        told = listed([f"{name} has no value in rows {rows}" for name, rows in empty.items()])
        if targets or len(empty) == len(names):
            raise DataError(f"{path}: {told}, a whole part of the split: it cannot be a target (--target)")
        notes.append(f"{told}: an input that is not forecast")
        names = [name for name in names if name not in empty]
        chosen = [table.columns.index(name) for name in names]
    train, valid, test = (_part(table, chosen, start, end) for start, end in pairwise(cut))
    inputs = _standard(table.values[: cut[1]], table.missing[: cut[1]])
    return SequenceData(
        "csv",
        train=[train],
        valid=[valid],
        test=[test],
        distribution="real",
        input_standard=inputs,
        output_standard=Standard(inputs.mean[chosen], inputs.std[chosen]),
        continuous=True,
        targets=tuple(chosen),
        season=table.axis.season if table.axis is not None else 0,
        notes=tuple(notes),
        about={
            "source": path.name,
            "columns": table.columns,
            "targets": names,
            "rows": rows,
            **table.about,
        },
    )


def _without_values(table: Table, chosen: list[int], cut: list[int]) -> dict[str, str]:
    """Name → rows, of the chosen columns that lack every value of a part."""
    return {
        table.columns[at]: f"{start + 1} to {end}"
        for start, end in pairwise(cut)
        for at in chosen
        if table.missing[start:end, at].all()
    }


def _part(table: Table, targets: list[int], start: int, end: int) -> Series:
    """The series whose targets are rows `start` to `end`; the first row of all can be no target."""
    first = max(start - 1 - WARM_UP, 0)
    wanted = table.values[first + 1 : end, targets].copy()
    wanted[table.missing[first + 1 : end, targets]] = np.nan
    wanted[: max(start - 1 - first, 0)] = np.nan
    return Series(table.values[first : end - 1], wanted)


def _standard(rows: Floats, missing: NDArray[np.bool_]) -> Standard:
    known = np.where(missing, np.nan, rows.astype(np.float64))
    known[:, missing.all(axis=0)] = 0.0
    mean, std = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    flat = std <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    return Standard(mean.astype(np.float32), np.where(flat, 1.0, std).astype(np.float32))
