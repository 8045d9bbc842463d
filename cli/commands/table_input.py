"""Tables of timesteps as they come: CSV, JSON lines and NPY, from files and pipes, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import stat
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import typer

from .table_layout import GAP_WORDS, Layout, Match, number, separator_of
from .tables import Columns, TableError, by_input, width
from .terminal import as_line

if TYPE_CHECKING:
    from streamcell.client import Tensor

# What becomes of a cell without a value: sent as NaN, replaced by the column's last value, or not sent at all.
Gaps: TypeAlias = Literal["keep", "forward", "skip"]

_NPY, _GZIP, _UTF16 = b"\x93NUMPY", b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
WAYS_ON = "--gaps forward repeats the column's last value, --gaps skip leaves the step out"
# The places of gaps that are remembered, more than a window of messages has.
_REMEMBERED = 100_000
_STANDARD_INPUT = ("-", "/dev/stdin", "/dev/fd/0")


@dataclass(frozen=True)
class Reading:
    """How a table is read.

    Attributes:
        chunk: timesteps a message.
        match: how columns are found.
        gaps: what becomes of cells without a value.
        separator: of a CSV file; None: found out.
    """

    chunk: int = 1
    match: Match = "names"
    gaps: Gaps = "keep"
    separator: str | None = None


class TableInput:
    """Timesteps of a file, a pipe or standard input, for one model.

    Attributes:
        live: the rows may still be in the making: it is no regular file.
        again: a second command would read the same rows from the start.
        skipped: for each row that `gaps="skip"` has left out, the number of timesteps before it.
    """

    def __init__(self, source: str, inputs: Sequence[Tensor], columns: Columns, how: Reading) -> None:
        """Open `source`; "-" is standard input.

        Raises:
            OSError: it cannot be opened.
        """
        self._name = "<stdin>" if source == "-" else source
        self._inputs = inputs
        self._columns = columns
        self._how = how
        self._kinds: list[type[float] | type[int]] = [
            float if tensor.dtype.rstrip("0123456789") == "float" else int
            for tensor in inputs
            for _ in range(width(tensor))
        ]
        self._steps = 0
        self._kept: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED)
        self.skipped: deque[int] = deque()
        if source == "-":
            raw: Any = sys.stdin.buffer
            self._file: Any = raw if hasattr(raw, "peek") else io.BufferedReader(raw)
            self.live = True
        else:
            self._file = open(source, "rb")  # noqa: SIM115  # closed with the process
            self.live = not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        self.again = source not in _STANDARD_INPUT

    def items(self) -> Iterator[dict[str, Any]]:
        """Timesteps, `chunk` at a time, as {input name: array [chunk, *step_shape]}.

        Raises:
            TableError: it is not a table of the model's inputs; the text names the place.
            OSError: it cannot be read.
        """
        file, mapped = self._file, not self.live
        begin = file.peek(len(_NPY))
        if begin[:1] == _GZIP[:1]:
            file, mapped = gzip.open(file), False  # noqa: SIM115  # closed with the process
            begin = self._unzipped(file)
        if begin[:1] == _NPY[:1]:
            yield from self._npy(file, mapped=mapped)
            return
        encoding = "utf-16" if begin[:2] in _UTF16 else "utf-8-sig"
        lines = io.TextIOWrapper(file, encoding=encoding, newline="")
        try:
            if begin.removeprefix(_BOM).lstrip()[:1] in (b"{", b"["):
                yield from self._arrays(self._json_rows(lines))
            else:
                yield from self._arrays(self._csv_rows(lines))
        finally:
            lines.detach()

    def gap_from(self, step: int) -> str:
        """The place of the first gap that was sent at timestep `step` or later; "" if none was."""
        return next((place for at, place in self._kept if at >= step), "")

    def _unzipped(self, file: Any) -> bytes:
        try:
            begin: bytes = file.peek(len(_NPY))
        except (OSError, EOFError) as error:
            raise TableError(f"{self._name}: not a gzip file, though it begins like one: {error}") from None
        return begin

    def _npy(self, file: Any, *, mapped: bool) -> Iterator[dict[str, Any]]:
        import numpy as np

        try:
            if mapped:
                array = np.load(self._name, mmap_mode="r", allow_pickle=False)
            else:  # numpy would ask a pipe for its position
                array = np.lib.format.read_array(io.BytesIO(file.read()), allow_pickle=False)
        except ValueError as error:
            raise TableError(f"{self._name}: {error}; save it with numpy.save, as numbers") from None
        columns = sum(map(width, self._inputs))
        one = self._inputs[0].step_shape if len(self._inputs) == 1 else None
        if not (array.ndim and (array.shape[1:] == one or array.shape[1:] == (columns,))):
            expected = f"[T, {columns}]" if one is None else str(["T", *one]).replace("'", "")
            raise TableError(
                f"{self._name}: expected an array {expected}, got {list(array.shape)}: a row for each timestep"
            )
        for first in range(0, len(array), self._how.chunk):
            part = array[first : first + self._how.chunk]
            yield by_input(part.reshape(len(part), columns), self._inputs)

    def _arrays(self, rows: Iterator[list[Any]]) -> Iterator[dict[str, Any]]:
        import numpy as np

        dtypes = {tensor.dtype for tensor in self._inputs}
        dtype: Any = object if len(dtypes) > 1 else self._inputs[0].dtype
        while batch := list(islice(rows, self._how.chunk)):
            try:
                with np.errstate(over="ignore"):  # becomes infinite, which the server accepts or rejects
                    yield by_input(np.array(batch, dtype), self._inputs, cast=True)
            except OverflowError as error:
                raise TableError(f"{self._name}: {error}: the model takes {dtype} there") from None

    # Rows of values, one for each column of the model

    def _csv_rows(self, lines: Iterable[str]) -> Iterator[list[Any]]:
        first_line, lines = _peeked(lines, self._name)
        separator = self._how.separator or separator_of(first_line, self._columns)
        reader = csv.reader(lines, delimiter=separator)
        try:
            first = next((row for row in reader if len(row) > 1 or "".join(row).strip()), None)
            if first is None:
                raise TableError(f"{self._name}: expected at least one row, got none")
            layout = Layout(first, self._columns, self._how.match, f"{self._name}:{reader.line_num}")
            if joined := ", ".join(layout.unused):
                typer.echo(f"{self._name}: not used: {as_line(joined)}", err=True)
            rows = iter(reader) if layout.is_header else chain([first], reader)
            filled = self._filled(self._complete(rows, reader, layout), comma=separator != ",")
            while (values := next(filled, None)) is not None:
                yield values
        except csv.Error as error:
            raise TableError(
                f"{self._name}:{reader.line_num + 1}: not CSV: {error}; see that quotes are closed"
            ) from None
        except UnicodeDecodeError as error:
            raise TableError(_not_utf8(f"{self._name}:{reader.line_num + 1}", error)) from None

    def _complete(
        self, rows: Iterator[list[str]], reader: Any, layout: Layout
    ) -> Iterator[tuple[str, Sequence[Any]]]:
        """Each row's place and the cells of the model's columns. A line without cells between rows is a gap."""
        blank: list[str] = []
        for row in rows:
            place = f"{self._name}:{reader.line_num}"
            if layout.is_blank(row):
                blank.append(place)
                continue
            for each in blank:
                yield each, ("",) * len(self._kinds)
            blank.clear()
            yield place, layout.take(row, place)

    def _json_rows(self, lines: Iterable[str]) -> Iterator[list[Any]]:
        def rows() -> Iterator[tuple[str, Sequence[Any]]]:
            for at, line in enumerate(lines, 1):
                if line.strip():
                    place = f"{self._name}:{at}"
                    try:
                        value = json.loads(line)
                    except ValueError as error:
                        raise TableError(f"{place}: not JSON: {error}; each line is one timestep") from None
                    yield place, self._json_cells(value, place)

        try:
            yield from self._filled(rows(), comma=False)
        except UnicodeDecodeError as error:
            raise TableError(_not_utf8(self._name, error)) from None

    def _json_cells(self, value: Any, place: str) -> Sequence[Any]:
        names = self._columns.names
        if isinstance(value, dict):
            if value.keys() >= set(names):
                return [value[name] for name in names]
            tensors = [tensor.name for tensor in self._inputs]
            if not value.keys() >= set(tensors):
                raise TableError(
                    f"{place}: expected the keys {', '.join(names)}, or {', '.join(tensors)} with lists; got "
                    f"{', '.join(value)}"
                )
            value = [value[name] for name in tensors]
        cells = list(_flat(value))
        if len(cells) != len(names):
            raise TableError(f"{place}: expected {len(names)} values ({', '.join(names)}), got {len(cells)}")
        return cells

    def _filled(self, rows: Iterator[tuple[str, Sequence[Any]]], *, comma: bool) -> Iterator[list[Any]]:
        """The rows' values, with gaps treated as the user asked."""
        last: list[Any] = [None] * len(self._kinds)
        for place, cells in rows:
            values = [self._value(cell, column, place, comma) for column, cell in enumerate(cells)]
            if gaps := [column for column, value in enumerate(values) if value is None]:
                told = f"{place}: column {self._columns.names[gaps[0]]}"
                if self._how.gaps == "skip":
                    self.skipped.append(self._steps)
                    continue
                if self._how.gaps == "forward":
                    self._forward(values, gaps, last, place)
                elif any(self._kinds[column] is int for column in gaps):
                    raise TableError(f"{told}: there is no value, and whole numbers have no NaN: {WAYS_ON}")
                else:
                    self._kept.append((self._steps, told))
                    values = [float("nan") if value is None else value for value in values]
            last = values
            self._steps += 1
            yield values

    def _forward(self, values: list[Any], gaps: list[int], last: list[Any], place: str) -> None:
        for column in gaps:
            if last[column] is None:
                raise TableError(
                    f"{place}: column {self._columns.names[column]}: there is no value yet that --gaps forward "
                    "could repeat: cut these rows off, or leave them out with --gaps skip"
                )
            values[column] = last[column]

    def _value(self, cell: Any, column: int, place: str, comma: bool) -> Any:
        """A cell's number; None for a gap."""
        kind = self._kinds[column]
        if cell is None or cell != cell or (isinstance(cell, str) and cell.strip().lower() in GAP_WORDS):
            return None
        if isinstance(cell, int) or (kind is float and isinstance(cell, float)):
            return cell
        try:
            return number(str(cell), kind, comma=comma)
        except ValueError:
            named = "a number" if kind is float else "a whole number"
            raise TableError(
                f"{place}: column {self._columns.names[column]}: expected {named}, got {cell!r}"
            ) from None


def _peeked(lines: Iterable[str], name: str) -> tuple[str, Iterator[str]]:
    """The first line that is not blank, and all lines."""
    lines, seen = iter(lines), []
    try:
        for line in lines:
            seen.append(line)
            if line.strip():
                break
    except UnicodeDecodeError as error:
        raise TableError(_not_utf8(f"{name}:{len(seen) + 1}", error)) from None
    return (seen[-1] if seen else ""), chain(seen, lines)


def _not_utf8(place: str, error: UnicodeDecodeError) -> str:
    return f"{place}: not CSV or JSON in UTF-8: {error.reason}; convert it: iconv -f LATIN1 -t UTF-8 FILE"


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value
