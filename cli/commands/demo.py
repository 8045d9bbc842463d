"""`streamcell demo`: the whole path from data to a live server's outputs, for each shape of model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamcell.cli.demos.base import Options, Report
from streamcell.cli.demos.registry import DEFAULT, by_name, by_shape

from .system_errors import cannot_open


def command(
    name: Annotated[
        str, typer.Argument(help="The demo to run; see --list.", show_default=True)
    ] = DEFAULT.name,
    list_: Annotated[bool, typer.Option("--list", help="List the demos by shape and exit.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for all files of the demo.  [runs/demo; runs/demo-NAME for NAME]",
            show_default=False,
        ),
    ] = None,
    data_folder: Annotated[Path, typer.Option(help="Where parsed data is cached.")] = Path("data"),
    sessions: Annotated[
        int | None,
        typer.Option(min=1, help="Concurrent sessions.  [64; 96 for cluster]", show_default=False),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Train for this many minutes.  [a fixed number of epochs, the same each time]",
            show_default=False,
        ),
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="How often to stream the held-out pieces.")] = 4,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train again even if there is a finished run.")
    ] = False,
    seed: Annotated[int, typer.Option(help="cluster: for which replica is killed when.")] = 1,
    sync: Annotated[
        bool, typer.Option("--sync", help="cluster: no reply before the store has the step (store-sync).")
    ] = False,
) -> None:
    """Train a model on real data, export it, serve it, stream through it and show the results.

    Without a name: an LSTM on Bach's chorales, measured with 64 sessions. Existing parsed data, trained models and
    exports are reused.
    """
    console = Console()
    if list_:
        console.print(_names())
        return
    demo = by_name().get(name)
    if demo is None:
        raise typer.BadParameter(
            f"there is no demo {name!r}; the demos are {', '.join(by_name())}", param_hint="NAME"
        )
    console.print(f"{demo.name}: {escape(demo.summary)}", highlight=False)
    from streamcell.client import StreamCellError
    from streamcell.client.local_server import ServerProcessError
    from streamcell.export import ExportError
    from streamcell.models import ModelError

    out = demo.folder if out is None else out
    sessions = demo.sessions if sessions is None else sessions
    options = Options(console, data_folder, minutes, sessions, passes, retrain, seed, sync)
    try:
        out.mkdir(parents=True, exist_ok=True)
        report = demo.run(out, options)
    except (ModelError, ExportError, ServerProcessError, StreamCellError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    except OSError as error:
        console.print(f"[red]error:[/red] {escape(cannot_open(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    console.print(_table(report))
    for text in report.wrong:
        console.print(f"[red]error:[/red] {escape(text)}", highlight=False, soft_wrap=True)
    if report.wrong:
        raise typer.Exit(1)


def _names() -> Table:
    table = Table(show_header=False, box=None)
    for shape, demos in by_shape():
        for index, demo in enumerate(demos):
            default = " (default)" if demo is DEFAULT else ""
            table.add_row("" if index else f"[bold]{shape}[/bold]", demo.name, escape(demo.summary + default))
    return table


def _table(report: Report) -> Table:
    table = Table(title=report.title, show_header=False)
    for what, value in [*report.rows, *((what, str(path)) for what, path in report.files.items())]:
        table.add_row(escape(what), escape(value))
    return table
