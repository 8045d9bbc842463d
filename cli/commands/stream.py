"""`streamcell stream`: feed a file, or lines as they come, through one session and print what the model says."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from streamcell.client import OutputMode, Session, Tensor

_Argument, _Option = typer.Argument, typer.Option
_FILE_WINDOW = 16
_NPY_MAGIC = b"\x93NUMPY"


class _UserError(Exception):
    """Something in the files or options that the user can put right."""


def command(
    model: Annotated[str, _Argument(help="Name of the model.")],
    source: Annotated[
        str,
        _Argument(metavar="FILE|-", help="CSV, or NPY of [T, ...]; - reads CSV rows from standard input."),
    ],
    target: Annotated[
        str, _Option(envvar="STREAMCELL_TARGET", help="Address of the server.")
    ] = "localhost:8500",
    version: Annotated[str, _Option(help="Version of the model.  [newest]")] = "",
    chunk: Annotated[int, _Option(min=1, help="Timesteps a message.")] = 1,
    window: Annotated[
        int | None, _Option(min=1, help="Messages on their way at a time.  [16; 1 for -]", show_default=False)
    ] = None,
    output_mode: Annotated[
        Literal["all", "last", "none"], _Option(help="Every step's output, each message's last, or none.")
    ] = "all",
    out: Annotated[
        Path | None, _Option(help="Write to this .csv, .npy or .npz instead of printing CSV.")
    ] = None,
    generate: Annotated[
        int | None,
        _Option(
            min=1, help="Then let the model go on by itself for so many timesteps, and print those alone."
        ),
    ] = None,
    temperature: Annotated[
        float | None, _Option(help="With --generate: sample, at this temperature.")
    ] = None,
    top_k: Annotated[
        int | None, _Option(min=1, help="With --generate: sample from the likeliest so many.")
    ] = None,
    seed: Annotated[int | None, _Option(min=0, help="With --generate: sample, from this seed.")] = None,
    header: Annotated[bool, _Option(help="Write a line of column names first.")] = True,
    timeout: Annotated[float, _Option(min=0.001, help="Seconds that any one reply may take.")] = 30.0,
    tls: Annotated[bool, _Option("--tls", help="Use TLS with the system's root certificates.")] = False,
    tls_roots: Annotated[
        Path | None, _Option(help="Use TLS with the root certificates of this PEM file.")
    ] = None,
) -> None:
    """Stream rows through one session of MODEL; the model remembers from row to row.

    A CSV row is one timestep: the values of every input in order, with or without a line of names first. From
    standard input each row is sent as it comes and its output printed at once. With --generate the rows are where
    the model begins, and what is printed is what the server feeds it from then on: rows as those that went in.
    Exit codes: 2 where the input is at fault, 1 where the server is.
    """
    from streamcell.client import InvalidInput, StreamCellError, connect

    try:
        if generate is None and (temperature, top_k, seed) != (None, None, None):
            raise _UserError("--temperature, --top-k and --seed go with --generate")
        with (
            connect(target, timeout_s=timeout, tls=tls_roots or tls) as client,
            client.session(model, version, output=output_mode) as session,
        ):
            live = source == "-"
            items = (
                _csv(sys.stdin, "<stdin>", session.inputs, chunk) if live else _file(source, session, chunk)
            )
            window = window or (1 if live else _FILE_WINDOW)
            began_s = time.monotonic()
            if generate is None:
                _write(session.stream(items, window=window), session.outputs, out, header)
            else:
                for _ in session.stream(items, window=window, output="none"):
                    pass
                fed = _generated(session, generate, temperature=temperature, top_k=top_k, seed=seed)
                _write(fed, session.inputs, out, header)
            if out is not None or output_mode == "none":
                took_s = time.monotonic() - began_s
                typer.echo(f"{session.step_index} timesteps through {model} in {took_s:.2f} s", err=True)
    except (_UserError, InvalidInput) as error:
        raise _fail(error, 2) from None
    except StreamCellError as error:
        raise _fail(f"{error} [{error.reason}]", 1) from None
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except OSError as error:
        raise _fail(f"{error.filename or target}: {error.strerror or error}", 2) from None


def _fail(error: object, code: int) -> typer.Exit:
    typer.echo(f"streamcell stream: {error}", err=True)
    return typer.Exit(code)


# In: timesteps as items of the session's stream, {input name: array [chunk, *step_shape]}


def _file(name: str, session: Session, chunk: int) -> Iterator[dict[str, Any]]:
    with open(name, "rb") as file:
        is_npy = file.read(len(_NPY_MAGIC)) == _NPY_MAGIC
    if is_npy:
        yield from _npy(name, session.inputs, chunk)
        return
    with open(name, newline="", encoding="utf-8") as lines:
        yield from _csv(lines, name, session.inputs, chunk)


def _npy(name: str, inputs: tuple[Tensor, ...], chunk: int) -> Iterator[dict[str, Any]]:
    import numpy as np

    try:
        array = np.load(name, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise _UserError(f"{name}: {error}") from None
    width = sum(map(_width, inputs))
    one = inputs[0].step_shape if len(inputs) == 1 else None
    if not (array.ndim and (array.shape[1:] == one or array.shape[1:] == (width,))):
        expected = f"[T, {width}]" if one is None else str(["T", *one]).replace("'", "")
        raise _UserError(f"{name}: expected an array {expected}, got {list(array.shape)}")
    for first in range(0, len(array), chunk):
        part = array[first : first + chunk]
        yield _by_input(part.reshape(len(part), width), inputs)


def _csv(lines: Iterable[str], name: str, inputs: tuple[Tensor, ...], chunk: int) -> Iterator[dict[str, Any]]:
    import numpy as np

    numbers = [
        tensor.dtype.rstrip("0123456789") == "float" for tensor in inputs for _ in range(_width(tensor))
    ]
    rows = _numbers(lines, name, [float if real else int for real in numbers])
    dtype = object if len({tensor.dtype for tensor in inputs}) > 1 else inputs[0].dtype
    while batch := list(islice(rows, chunk)):
        try:
            with np.errstate(over="ignore"):  # becomes infinite, which the server's policy judges
                yield _by_input(np.array(batch, dtype), inputs, cast=True)
        except OverflowError as error:
            raise _UserError(f"{name}: {error}") from None


def _numbers(lines: Iterable[str], name: str, kinds: list[type]) -> Iterator[list[Any]]:
    reader = csv.reader(lines)
    rows = ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
    try:
        first = next(rows, None)
        if first is None:
            raise _UserError(f"{name}: expected at least one row, got none")
        if not any(map(_is_number, first[1])):  # a line of names
            first = next(rows, None)
        for line, row in chain([first] if first else [], rows):
            if len(row) != len(kinds):
                raise _UserError(f"{name}:{line}: expected {len(kinds)} columns, got {len(row)}")
            yield [_number(cell, kind, f"{name}:{line}") for cell, kind in zip(row, kinds, strict=True)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise _UserError(f"{name}:{reader.line_num + 1}: not CSV: {error}") from None


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
        raise _UserError(f"{place}: expected {named}, got {cell!r}") from None


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


# Out: a dict of arrays [T, *step_shape], or the one array, or None a message


def _generated(session: Session, steps: int, **settings: Any) -> Iterator[Any]:
    """What the server feeds the model, step by step, each [1, *step_shape]."""
    info = session.generation
    # A value that is fed back is an output; what is chosen from one is told without it.
    output: OutputMode = "all" if info is not None and info.head == "real" else "none"
    for step in session.generate(steps, output=output, **settings):
        yield step.fed[None]


def _write(outputs: Iterator[Any], specs: tuple[Tensor, ...], out: Path | None, header: bool) -> None:
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
        raise _UserError(f"{out}: the model has {len(specs)} outputs: write them to a .npz or .csv")
    empty = {spec.name: np.empty((0, *spec.step_shape), spec.dtype) for spec in specs}
    whole = {spec.name: np.concatenate([part[spec.name] for part in (empty, *parts)]) for spec in specs}
    if out.suffix == ".npy":
        np.save(out, whole[specs[0].name])
    else:
        np.savez(out, **whole)  # type: ignore[arg-type]  # no tensor is called allow_pickle


def _named(output: Any, specs: tuple[Tensor, ...]) -> dict[str, Any]:
    return output if isinstance(output, dict) else {specs[0].name: output}


def _columns(tensor: Tensor) -> list[str]:
    """`y` for a scalar a step, else `y_0`, `y_1`, …, in C order."""
    return [f"{tensor.name}_{i}" for i in range(_width(tensor))] if tensor.step_shape else [tensor.name]
