"""`streamcell stream`: send a file or standard input through one session and print the model's outputs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .connection import LOCAL, BearerFile, Place, Target, Tls, TlsRoots
from .open_inputs import open_inputs
from .operate import REMEDIES
from .progress import Progress
from .system_errors import cannot_open
from .table_input import WAYS_ON, Gaps, Reading, TableInput
from .table_layout import Match
from .table_output import Format, TableOutput
from .tables import TableError, input_columns, output_columns
from .terminal import as_line

if TYPE_CHECKING:
    from streamcell.client import Client, Model, OutputMode, Session, StreamCellError, Ticket

_Argument, _Option = typer.Argument, typer.Option
_FILE_WINDOW = 16


def command(
    model: Annotated[str, _Argument(help="Name of the model.")],
    source: Annotated[
        str,
        _Argument(
            metavar="FILE|-", help="CSV, JSON lines or NPY of [T, ...]; a pipe too; -: standard input."
        ),
    ],
    target: Target = LOCAL,
    version: Annotated[str, _Option(help="Version of the model.  [newest]")] = "",
    given: Annotated[
        list[str] | None,
        _Option(
            "--open",
            metavar="NAME=VALUE|FILE",
            help="Give the session an input that it takes when it opens: a number, a JSON list, or an NPY file.",
        ),
    ] = None,
    match: Annotated[
        Match,
        _Option(
            help="Find columns by their names in the model's order (names), in any-order, or by position."
        ),
    ] = "names",
    gaps: Annotated[
        Gaps,
        _Option(help="Cells without a value: keep (send NaN), forward (repeat the last), skip the step."),
    ] = "keep",
    separator: Annotated[
        str | None, _Option(help="Of a CSV file.  [found out: , ; | or a tab]", show_default=False)
    ] = None,
    chunk: Annotated[int, _Option(min=1, help="Timesteps a message.")] = 1,
    window: Annotated[
        int | None,
        _Option(min=1, help="Messages sent ahead of their replies.  [16; 1 for a pipe]", show_default=False),
    ] = None,
    output_mode: Annotated[
        Literal["all", "last", "none"], _Option(help="Every step's output, each message's last, or none.")
    ] = "all",
    out: Annotated[
        Path | None, _Option(help="Write to this .csv, .jsonl, .npy or .npz instead of standard output.")
    ] = None,
    form: Annotated[
        Format | None,
        _Option("--format", help="Write csv, jsonl or npy.  [as --out; csv]", show_default=False),
    ] = None,
    generate: Annotated[
        int | None,
        _Option(min=1, help="Then let the model generate this many timesteps, and print only those."),
    ] = None,
    temperature: Annotated[float | None, _Option(help="With --generate: sample at this temperature.")] = None,
    top_k: Annotated[
        int | None, _Option(min=1, help="With --generate: sample from this many of the likeliest classes.")
    ] = None,
    seed: Annotated[int | None, _Option(min=0, help="With --generate: sample with this seed.")] = None,
    resume: Annotated[
        Path | None,
        _Option(
            metavar="FILE",
            help="Keep in FILE how far it has come. Started again, the command goes on there.",
        ),
    ] = None,
    durability: Annotated[
        Literal["none", "process", "store-async", "store-sync"] | None,
        _Option(
            help="With --resume: what the session must survive.  [what the server gives]", show_default=False
        ),
    ] = None,
    header: Annotated[bool, _Option(help="Write a line of column names first.")] = True,
    timeout: Annotated[float, _Option(min=0.001, help="Seconds to wait for a reply.")] = 30.0,
    tls: Tls = False,
    tls_roots: TlsRoots = None,
    bearer_file: BearerFile = None,
) -> None:
    """Stream rows through one session of MODEL; the model remembers from row to row.

    A row is one timestep. If there is a line of names, the command finds the model's columns by them. It refuses
    missing names and another order; it leaves out columns that the model does not know, and names them. Without names a
    row has the values of every input in order. Each row of a pipe is sent when it arrives, and its output is printed at
    once. With --generate the command prints only the rows that the model generates after the given ones. Exit codes: 2
    if the input is at fault, 1 if the server is.
    """
    from streamcell.client import InvalidInput, StreamCellError

    table: TableInput | None = None
    session: Session | None = None
    try:
        _check(generate, resume, out, form, gaps, sampling=(temperature, top_k, seed), separator=separator)
        if durability is not None and resume is None:
            raise TableError("--durability needs --resume FILE, where the session can be found again")
        progress = Progress(resume, chunk) if resume is not None else None
        ticket = progress.ticket() if progress is not None else None
        with Place(target, timeout, tls, tls_roots, bearer_file).connect() as client:
            about = _about(client, model, version, ticket)
            card = about.card if about is not None else {}
            with (
                client.resume(ticket)
                if ticket is not None
                else client.session(
                    model,
                    version,
                    output=output_mode,
                    inputs=open_inputs(given, about.open_inputs) if given and about is not None else None,
                    resume=progress is not None,
                    durability=durability,
                )
            ) as session:
                inputs, outputs = session.inputs, session.outputs
                columns = input_columns(inputs, card)
                table = TableInput(source, inputs, columns, Reading(chunk, match, gaps, separator))
                items = table.items()
                window = window or (1 if table.live else _FILE_WINDOW)
                began_s = time.monotonic()
                written = TableOutput(
                    outputs, output_columns(outputs, card), out, form, header and ticket is None
                )
                if progress is not None:
                    written.write(progress.outputs(session, items, window, live=not table.again))
                elif generate is None:
                    skipped = table.skipped if output_mode == "all" else None
                    written.check()
                    written.write(session.stream(items, window=window), skipped)
                else:
                    for _ in session.stream(items, window=window, output="none"):
                        pass
                    fed = _generated(session, generate, temperature=temperature, top_k=top_k, seed=seed)
                    TableOutput(inputs, columns, out, form, header).write(fed)
                if out is not None or output_mode == "none":
                    took_s = time.monotonic() - began_s
                    typer.echo(f"{session.step_index} timesteps through {model} in {took_s:.2f} s", err=True)
    except TableError as error:
        raise _fail(error, 2) from None
    except InvalidInput as error:
        raise _fail(_with_place(error, table, session), 2) from None
    except StreamCellError as error:
        asked_who = error.code.name == "UNAUTHENTICATED"
        remedy = REMEDIES["UNAUTHENTICATED"] if asked_who else REMEDIES.get(error.reason, "")
        raise _fail(f"{error} [{error.reason}]{remedy and f': {remedy}'}", 1) from None
    except BrokenPipeError:  # the program that reads our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except OSError as error:
        raise _fail(cannot_open(error, target), 2) from None


def _check(
    generate: int | None,
    resume: Path | None,
    out: Path | None,
    form: Format | None,
    gaps: Gaps,
    *,
    sampling: tuple[object, ...],
    separator: str | None,
) -> None:
    """Raise TableError for options that exclude each other."""
    if generate is None and any(each is not None for each in sampling):
        raise TableError("--temperature, --top-k and --seed need --generate N, the number of timesteps")
    if resume is not None and (generate is not None or out is not None or form == "npy" or gaps == "skip"):
        raise TableError(
            "--resume goes with neither --generate, --out, --format npy nor --gaps skip: print CSV or JSON lines"
        )
    if separator is not None and len(separator) != 1:
        raise TableError(
            f"--separator: expected one character such as ; or a tab ($'\\t'), got {separator!r}"
        )


def _about(client: Client, model: str, version: str, ticket: Ticket | None) -> Model | None:
    """The model's description; None for a session that goes on with a model that the server no longer lists."""
    from streamcell.client import NotFound

    try:
        return client.model(model, version)
    except NotFound:
        if ticket is None:
            raise
        return None


def _with_place(error: StreamCellError, table: TableInput | None, session: Session | None) -> str:
    """The error's text; for a gap that the server refuses, with its place and the options."""
    place = ""
    if error.reason == "NON_FINITE_INPUT" and table is not None and session is not None:
        place = table.gap_from(session.step_index)
    if not place:
        return str(error)
    return (
        f"{place}: there is no value: {error}; {WAYS_ON}, or start the server with --non-finite allow if the model "
        "can do with NaN"
    )


def _generated(session: Session, steps: int, **settings: Any) -> Iterator[Any]:
    """The inputs that the server generates, step by step, each [1, *step_shape]."""
    info = session.generation
    # A real head feeds its output back, so outputs are needed; other heads return what they chose.
    output: OutputMode = "all" if info is not None and info.head == "real" else "none"
    for step in session.generate(steps, output=output, **settings):
        yield step.fed[None]


def _fail(error: object, code: int) -> typer.Exit:
    typer.echo(f"streamcell stream: {as_line(error)}", err=True)
    return typer.Exit(code)
