"""Tables of timesteps: CSV and NPY files in, CSV, NPY and NPZ out."""

from __future__ import annotations

import contextlib
import csv
import math
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamcell.client import Tensor

_NPY_MAGIC = b"\x93NUMPY"


class TableError(Exception):
    """A file or an option is wrong in a way that the user can correct; the text names the place."""


def read_file(name: str, inputs: tuple[Tensor, ...], chunk: int) -> Iterator[dict[str, Any]]:
    """Timesteps of an NPY or CSV file, `chunk` at a time, as {input name: array [chunk, *step_shape]}.

    Raises:
        TableError: the file is not a table of the model's inputs; the text names the place.
        OSError: it cannot be read.
    """
    with open(name, "rb") as file:
        is_npy = file.read(len(_NPY_MAGIC)) == _NPY_MAGIC
    if is_npy:
        yield from _npy(name, inputs, chunk)
        return
    with open(name, newline="", encoding="utf-8") as lines:
        yield from read_csv(lines, name, inputs, chunk)


def _npy(name: str, inputs: tuple[Tensor, ...], chunk: int) -> Iterator[dict[str, Any]]:
    import numpy as np

    try:
        array = np.load(name, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise TableError(f"{name}: {error}") from None
    width = sum(map(_width, inputs))
    one = inputs[0].step_shape if len(inputs) == 1 else None
    if not (array.ndim and (array.shape[1:] == one or array.shape[1:] == (width,))):
        expected = f"[T, {width}]" if one is None else str(["T", *one]).replace("'", "")
        raise TableError(f"{name}: expected an array {expected}, got {list(array.shape)}")
    for first in range(0, len(array), chunk):
        part = array[first : first + chunk]
        yield _by_input(part.reshape(len(part), width), inputs)


def read_csv(
    lines: Iterable[str], name: str, inputs: tuple[Tensor, ...], chunk: int
) -> Iterator[dict[str, Any]]:
    """Timesteps of CSV lines, as `read_file` returns them; errors use `name` for the lines."""
    import numpy as np

    numbers = [
        tensor.dtype.rstrip("0123456789") == "float" for tensor in inputs for _ in range(_width(tensor))
    ]
    rows = _numbers(lines, name, [float if real else int for real in numbers])
    dtype = object if len({tensor.dtype for tensor in inputs}) > 1 else inputs[0].dtype
    while batch := list(islice(rows, chunk)):
        try:
            with np.errstate(over="ignore"):  # becomes infinite, which the server accepts or rejects
                yield _by_input(np.array(batch, dtype), inputs, cast=True)
        except OverflowError as error:
            raise TableError(f"{name}: {error}") from None


def _numbers(lines: Iterable[str], name: str, kinds: list[type]) -> Iterator[list[Any]]:
    reader = csv.reader(lines)
    rows = ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
    try:
        first = next(rows, None)
        if first is None:
            raise TableError(f"{name}: expected at least one row, got none")
        if not any(map(_is_number, first[1])):  # a line of names
            first = next(rows, None)
        for line, row in chain([first] if first else [], rows):
            if len(row) != len(kinds):
                raise TableError(f"{name}:{line}: expected {len(kinds)} columns, got {len(row)}")
            yield [_number(cell, kind, f"{name}:{line}") for cell, kind in zip(row, kinds, strict=True)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{name}:{reader.line_num + 1}: not CSV: {error}") from None


def _is_number(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        float(cell)
        return True
    return False


def _number(cell: str, kind: type, place: str) -> Any:
    try:
        return kind(cell)
    except ValueError:
        named = "a number" if kind is float else "a whole number"
        raise TableError(f"{place}: expected {named}, got {cell!r}") from None


def _width(tensor: Tensor) -> int:
    return math.prod(tensor.step_shape)


def _by_input(table: Any, inputs: tuple[Tensor, ...], *, cast: bool = False) -> dict[str, Any]:
    """Cut a table [T, columns] into {input name: array [T, *step_shape]}."""
    items, column = {}, 0
    for tensor in inputs:
        part = table[:, column : column + _width(tensor)]
        column += _width(tensor)
        items[tensor.name] = (part.astype(tensor.dtype) if cast else part).reshape(-1, *tensor.step_shape)
    return items


def write_table(outputs: Iterable[Any], specs: tuple[Tensor, ...], out: Path | None, header: bool) -> None:
    """Write outputs as they come: CSV to standard output or `out`, or one .npy or .npz file at the end.

    Args:
        outputs: for each message a dict of arrays [T, *step_shape], or the only output's array, or None.
        specs: the outputs' names, dtypes and shapes.
        out: a .csv, .npy or .npz file; None: standard output.
        header: whether a line of column names comes first.

    Raises:
        TableError: `out` cannot hold that many outputs.
    """
    if out is not None and out.suffix in (".npy", ".npz"):
        _write_numpy([_named(each, specs) for each in outputs if each is not None], specs, out)
        return
    with contextlib.ExitStack() as stack:
        file = sys.stdout if out is None else stack.enter_context(out.open("w", newline="", encoding="utf-8"))
        writer = csv.writer(file, lineterminator="\n")
        for each in outputs:
            if each is None:
                continue
            if header:
                writer.writerow(chain.from_iterable(map(_columns, specs)))
                header = False
            tables = [array.reshape(len(array), -1) for array in _named(each, specs).values()]
            for row in zip(*tables, strict=True):
                writer.writerow(str(value) for values in row for value in values)
            file.flush()


def _write_numpy(parts: list[dict[str, Any]], specs: tuple[Tensor, ...], out: Path) -> None:
    import numpy as np

    if out.suffix == ".npy" and len(specs) > 1:
        raise TableError(f"{out}: the model has {len(specs)} outputs: write them to a .npz or .csv")
    empty = {spec.name: np.empty((0, *spec.step_shape), spec.dtype) for spec in specs}
    whole = {spec.name: np.concatenate([part[spec.name] for part in (empty, *parts)]) for spec in specs}
    if out.suffix == ".npy":
        np.save(out, whole[specs[0].name])
    else:
        np.savez(out, **whole)  # type: ignore[arg-type]  # no tensor is called allow_pickle


def _named(output: Any, specs: tuple[Tensor, ...]) -> dict[str, Any]:
    return output if isinstance(output, dict) else {specs[0].name: output}


def _columns(tensor: Tensor) -> list[str]:
    """`y` for a scalar per step, else `y_0`, `y_1`, …, in C order."""
    return [f"{tensor.name}_{i}" for i in range(_width(tensor))] if tensor.step_shape else [tensor.name]
