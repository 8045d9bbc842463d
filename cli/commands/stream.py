"""`streamcell stream`: send a file or standard input through one session and print the model's outputs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .open_inputs import open_inputs
from .progress import Progress
from .tables import TableError, read_csv, read_file, write_table

if TYPE_CHECKING:
    from streamcell.client import OutputMode, Session

_Argument, _Option = typer.Argument, typer.Option
_FILE_WINDOW = 16


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
    given: Annotated[
        list[str] | None,
        _Option(
            "--open",
            metavar="NAME=VALUE|FILE",
            help="Give the session an input that it takes when it opens: a number, a JSON list, or an NPY file.",
        ),
    ] = None,
    chunk: Annotated[int, _Option(min=1, help="Timesteps a message.")] = 1,
    window: Annotated[
        int | None,
        _Option(min=1, help="Messages sent ahead of their replies.  [16; 1 for -]", show_default=False),
    ] = None,
    output_mode: Annotated[
        Literal["all", "last", "none"], _Option(help="Every step's output, each message's last, or none.")
    ] = "all",
    out: Annotated[
        Path | None, _Option(help="Write to this .csv, .npy or .npz instead of printing CSV.")
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
    header: Annotated[bool, _Option(help="Write a line of column names first.")] = True,
    timeout: Annotated[float, _Option(min=0.001, help="Seconds to wait for a reply.")] = 30.0,
    tls: Annotated[bool, _Option("--tls", help="Use TLS with the system's root certificates.")] = False,
    tls_roots: Annotated[
        Path | None, _Option(help="Use TLS with the root certificates of this PEM file.")
    ] = None,
) -> None:
    """Stream rows through one session of MODEL; the model remembers from row to row.

    A CSV row is one timestep: the values of every input in order, with or without a line of names first. Each row
    of standard input is sent when it arrives, and its output is printed at once. With --generate the command prints
    only the rows that the model generates after the given ones. Exit codes: 2 if the input is at fault, 1 if the
    server is.
    """
    from streamcell.client import InvalidInput, StreamCellError, connect

    try:
        if generate is None and (temperature, top_k, seed) != (None, None, None):
            raise TableError("--temperature, --top-k and --seed need --generate")
        if resume is not None and (generate is not None or out is not None):
            raise TableError("--resume goes with neither --generate nor --out")
        progress = Progress(resume, chunk) if resume is not None else None
        ticket = progress.ticket() if progress is not None else None
        with (
            connect(target, timeout_s=timeout, tls=tls_roots or tls) as client,
            client.resume(ticket)
            if ticket is not None
            else client.session(
                model,
                version,
                output=output_mode,
                inputs=open_inputs(given, client.model(model, version).open_inputs) if given else None,
                resume=progress is not None,
            ) as session,
        ):
            live = source == "-"
            inputs = session.inputs
            items = (
                read_csv(sys.stdin, "<stdin>", inputs, chunk) if live else read_file(source, inputs, chunk)
            )
            window = window or (1 if live else _FILE_WINDOW)
            began_s = time.monotonic()
            if progress is not None:
                rest = progress.outputs(session, items, window, live=live)
                write_table(rest, session.outputs, out, header and ticket is None)
            elif generate is None:
                write_table(session.stream(items, window=window), session.outputs, out, header)
            else:
                for _ in session.stream(items, window=window, output="none"):
                    pass
                fed = _generated(session, generate, temperature=temperature, top_k=top_k, seed=seed)
                write_table(fed, session.inputs, out, header)
            if out is not None or output_mode == "none":
                took_s = time.monotonic() - began_s
                typer.echo(f"{session.step_index} timesteps through {model} in {took_s:.2f} s", err=True)
    except (TableError, InvalidInput) as error:
        raise _fail(error, 2) from None
    except StreamCellError as error:
        raise _fail(f"{error} [{error.reason}]", 1) from None
    except BrokenPipeError:  # the program that reads our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except OSError as error:
        raise _fail(f"{error.filename or target}: {error.strerror or error}", 2) from None


def _generated(session: Session, steps: int, **settings: Any) -> Iterator[Any]:
    """The inputs that the server generates, step by step, each [1, *step_shape]."""
    info = session.generation
    # A real head feeds its output back, so outputs are needed; other heads return what they chose.
    output: OutputMode = "all" if info is not None and info.head == "real" else "none"
    for step in session.generate(steps, output=output, **settings):
        yield step.fed[None]


def _fail(error: object, code: int) -> typer.Exit:
    typer.echo(f"streamcell stream: {error}", err=True)
    return typer.Exit(code)
