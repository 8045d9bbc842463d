"""Outputs as tables: CSV, JSON lines, NPY and NPZ, to standard output or a file."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .tables import Columns, TableError

if TYPE_CHECKING:
    from streamcell.client import Tensor

Format: TypeAlias = Literal["csv", "jsonl", "npy"]
_BY_SUFFIX: dict[str, Format] = {".jsonl": "jsonl", ".npy": "npy", ".npz": "npy"}
# By the outputs' names arrays [T, *step_shape]; None: the empty row of a step that was left out.
_Part: TypeAlias = dict[str, Any] | None


@dataclass(frozen=True)
class TableOutput:
    """Writes outputs.

    Attributes:
        tensors: the outputs' names, dtypes and shapes.
        columns: what their columns are called.
        out: the file; None: standard output.
        form: None: as the file's name says, else CSV.
        header: whether a CSV begins with a line of names.
    """

    tensors: Sequence[Tensor]
    columns: Columns
    out: Path | None = None
    form: Format | None = None
    header: bool = True

    def check(self) -> None:
        """Raise TableError if the outputs cannot be written so."""
        if self._form != "npy":
            return
        if len(self.tensors) > 1 and (self.out is None or self.out.suffix != ".npz"):
            raise TableError(
                f"{self.out or '--format npy'}: the model has {len(self.tensors)} outputs, and an NPY file holds one "
                "array: write them to a .npz by --out, or as csv or jsonl"
            )
        if self.out is None and sys.stdout.isatty():
            raise TableError("--format npy is not for terminals: add --out FILE.npy, or > FILE.npy")

    def write(self, outputs: Iterable[Any], skipped: deque[int] | None = None) -> None:
        """Write outputs as they come; arrays at the end.

        Args:
            outputs: for each message a dict of arrays [T, *step_shape], or the only output's array, or None.
            skipped: for each row that gets an empty one in its place, the number of timesteps before it. It may
                grow while outputs come.

        Raises:
            TableError: see `check`; or whole numbers would need an empty row.
            OSError: the file cannot be written.
        """
        self.check()
        named = (self._named(each) for each in outputs if each is not None)
        parts: Iterator[_Part] = iter(named) if skipped is None else with_empty_rows(named, skipped)
        if self._form == "npy":
            self._write_arrays(parts)
            return
        with contextlib.ExitStack() as stack:
            file = (
                sys.stdout
                if self.out is None
                else stack.enter_context(self.out.open("w", newline="", encoding="utf-8"))
            )
            row_writer = self._json_rows(file) if self._form == "jsonl" else self._csv_rows(file)
            for part in parts:
                for row in self._rows(part):
                    row_writer(row)
                file.flush()

    @property
    def _form(self) -> Format:
        return self.form or (_BY_SUFFIX.get(self.out.suffix, "csv") if self.out is not None else "csv")

    def _named(self, output: Any) -> dict[str, Any]:
        return output if isinstance(output, dict) else {self.tensors[0].name: output}

    def _rows(self, part: _Part) -> Iterator[list[Any]]:
        """The rows of values; None in place of a value that is not there."""
        if part is None:
            yield [None] * len(self.columns.names)
            return
        tables = [array.reshape(len(array), -1) for array in part.values()]
        for row in zip(*tables, strict=True):
            yield [value for values in row for value in values]

    def _csv_rows(self, file: Any) -> Callable[[list[Any]], object]:
        writer = csv.writer(file, lineterminator="\n")
        header = [self.columns.names] if self.header else []

        def write(row: list[Any]) -> None:
            while header:
                writer.writerow(header.pop())
            writer.writerow("" if value is None else str(value) for value in row)

        return write

    def _json_rows(self, file: Any) -> Callable[[list[Any]], object]:
        keys = [json.dumps(name, ensure_ascii=False) for name in self.columns.names]

        def write(row: list[Any]) -> None:
            values = zip(keys, map(_as_json, row), strict=True)
            file.write("{" + ", ".join(f"{key}: {value}" for key, value in values) + "}\n")

        return write

    def _write_arrays(self, parts: Iterable[_Part]) -> None:
        import numpy as np

        taken = [self._empty_row() if part is None else part for part in parts]
        empty = {each.name: np.empty((0, *each.step_shape), each.dtype) for each in self.tensors}
        whole = {
            each.name: np.concatenate([part[each.name] for part in (empty, *taken)]) for each in self.tensors
        }
        if self.out is not None and self.out.suffix == ".npz":
            np.savez(self.out, **whole)  # type: ignore[arg-type]  # no tensor is called allow_pickle
            return
        array = whole[self.tensors[0].name]
        if self.out is None:
            np.lib.format.write_array(sys.stdout.buffer, array, allow_pickle=False)
            sys.stdout.buffer.flush()
        else:
            with self.out.open("wb") as file:
                np.save(file, array)

    def _empty_row(self) -> dict[str, Any]:
        import numpy as np

        for tensor in self.tensors:
            if np.dtype(tensor.dtype).kind != "f":
                raise TableError(
                    f"--gaps skip: {tensor.name} is {tensor.dtype}, and an array of these has no empty rows: write csv "
                    "or jsonl"
                )
        return {each.name: np.full((1, *each.step_shape), np.nan, each.dtype) for each in self.tensors}


def with_empty_rows(parts: Iterable[dict[str, Any]], skipped: deque[int]) -> Iterator[_Part]:
    """The parts, cut where steps were left out, with None for each of these steps."""
    step = 0
    for part in parts:
        length, begin = len(next(iter(part.values()))), 0
        while skipped and skipped[0] < step + length:
            cut = skipped.popleft() - step
            if cut > begin:
                yield {name: array[begin:cut] for name, array in part.items()}
                begin = cut
            yield None
        yield {name: array[begin:] for name, array in part.items()} if begin else part
        step += length
    for _ in range(len(skipped)):
        skipped.popleft()
        yield None


def _as_json(value: Any) -> str:
    """A number as JSON, which has neither NaN nor infinity: null."""
    if value is None or not math.isfinite(value):
        return "null"
    text = str(value)
    return text.lower() if text in ("True", "False") else text
