"""`streamcell demo`: the whole path on Bach's chorales, from the scores to figures measured on a live server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from .demo_report import Report


def command(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    data_folder: Annotated[Path, typer.Option(help="Where the parsed corpus is cached.")] = Path("data"),
    sessions: Annotated[int, typer.Option(min=1, help="Concurrent sessions.")] = 64,
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 1.0,
    passes: Annotated[int, typer.Option(min=1, help="Times that the held-out pieces are streamed.")] = 4,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train again where a run is there.")] = False,
) -> None:
    """Train an LSTM on Bach's chorales, export it, serve it, stream held-out pieces and measure.

    What is there already (the parsed corpus, the trained model, the export) is used again.
    """
    console = Console()
    from streamcell.client import StreamCellError
    from streamcell.export import ExportError
    from streamcell.models import ModelError

    from .demo_report import write_report
    from .demo_stream import measure
    from .demo_train import prepare
    from .server_process import ServerProcessError

    try:
        trained = prepare(out, data_folder, minutes=minutes, retrain=retrain, console=console)
        console.print(f"streaming {len(trained.test)} held-out pieces through {sessions} sessions …")
        measured = measure(trained, sessions=sessions, passes=passes)
        report = write_report(out, trained, measured)
    except (ModelError, ExportError, ServerProcessError, StreamCellError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    console.print(_table(report))


def _table(report: Report) -> Table:
    table = Table(title="Bach's chorales, served", show_header=False)
    figures = report.figures
    table.add_row("test loss in PyTorch", f"{figures['loss_torch']:.6f} nats a timestep")
    table.add_row("test loss as served", f"{figures['loss_served']:.6f} nats a timestep")
    table.add_row("sessions, steps", f"{figures['sessions']}, {figures['steps']}")
    table.add_row("steps a second", f"{figures['steps_per_s']:.0f}")
    table.add_row("latency p50, p99", f"{figures['p50_ms']:.2f} ms, {figures['p99_ms']:.2f} ms")
    table.add_row("mean batch (server's /metrics)", f"{figures['mean_batch']:.1f} sessions a run")
    table.add_row("server CPU a step", f"{figures['server_cpu_us_per_step']:.0f} µs")
    for what, path in report.files.items():
        table.add_row(what, str(path))
    return table
