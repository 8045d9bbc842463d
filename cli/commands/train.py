"""`streamcell train`: from a data set to a run folder."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .forecast import forecast_table, warnings_of

if TYPE_CHECKING:
    from streamcell.models import TrainConfig, TrainResult

_DATA = "csv: the CSV file. chorales: a JSB JSON file instead of music21's corpus."


def _csv(*spelled: str, **settings: Any) -> Any:
    """An option of CSV files; what is not given is found in the file."""
    return typer.Option(*spelled, rich_help_panel="CSV files", show_default=False, **settings)


def command(
    dataset: Annotated[
        str,
        typer.Argument(help="chorales, harmony, vowels, voice, digits, g2p, or csv with --data FILE.csv."),
    ],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="mlp, rnn, lstm, gru, cnn or tcn; seq2seq for g2p.  "
            "[lstm; gru for csv, voice and vowels, mlp for digits]",
            show_default=False,
        ),
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Units or channels of a layer.")] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Hidden layers; blocks of a tcn.  [1; 3 for cnn, 4 for tcn]", show_default=False
        ),
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout between layers and before the head.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the model's kind: reset_after=true, residual=true, kernel_size=5 …",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help=_DATA)] = None,
    data_folder: Annotated[Path, typer.Option(help="Where the parsed corpus is cached.")] = Path("data"),
    target: Annotated[str, _csv(help="Columns to forecast, separated by commas.  [all]")] = "",
    separator: Annotated[str, _csv(help="Between cells: a character, tab or space.  [found]")] = "",
    decimal: Annotated[str, _csv(help="Decimal point: . or ,  [found]")] = "",
    thousands: Annotated[str, _csv(help="Between groups of three digits.  [found]")] = "",
    quote: Annotated[str, _csv(help='Around cells that hold separators.  ["]')] = '"',
    encoding: Annotated[str, _csv(help="utf-8, cp1252, utf-16 …  [found]")] = "",
    comment: Annotated[str, _csv(help="What lines begin with that are no rows.  [#]")] = "",
    header: Annotated[
        bool | None, _csv("--header/--no-header", help="Whether the first line names the columns.  [found]")
    ] = None,
    missing: Annotated[
        list[str] | None,
        _csv(metavar="CELL", help="A cell that means no value, such as -999; may be repeated."),
    ] = None,
    time: Annotated[
        str, _csv(help="Columns of dates or counts, such as year,month; none: rows in their order.  [found]")
    ] = "",
    day_first: Annotated[bool, _csv("--day-first", help="1/2/2024 is the first of February.")] = False,
    columns: Annotated[str, _csv(help="Columns to read, separated by commas.  [all]")] = "",
    drop: Annotated[str, _csv(help="Columns not to read.")] = "",
    categories: Annotated[str, _csv(help="Columns of words: refuse or one-hot.  [refuse]")] = "refuse",
    gaps: Annotated[
        str, _csv(help="Missing cells and rows: refuse, forward, linear or mask.  [refuse]")
    ] = "refuse",
    forecast: Annotated[
        str | None,
        _csv(
            help="What the model adds to: value (nothing), change, difference, season or difference+season, each with "
            "+log for logarithms; auto: what forecasts the training part best by itself.  [auto]"
        ),
    ] = None,
    season: Annotated[int | None, _csv(min=2, help="Steps of a season.  [the time axis's]")] = None,
    quantiles: Annotated[str, _csv(help="Forecast these instead of a value: 0.1,0.5,0.9.")] = "",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training part.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train for this many minutes instead of --epochs; not reproducible.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences in a batch.")] = None,
    window: Annotated[int | None, typer.Option(help="Timesteps of truncated back-propagation.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine, linear or constant.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="AdamW's weight decay, on matrices only.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Bound on the gradient's global norm.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Epochs without progress before stopping; 0: never.")
    ] = None,
    transpose: Annotated[
        int | None, typer.Option(help="Piano data: transpose each piece by up to this many semitones.")
    ] = None,
    stretch: Annotated[
        float | None,
        typer.Option(help="vowels: make each utterance longer or shorter by a factor of up to 1 + this."),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Add normal noise to the inputs in training, of this many of their deviations."),
    ] = None,
    stress: Annotated[
        bool | None, typer.Option(help="g2p: keep the stress of vowels: 69 phonemes instead of 39.")
    ] = None,
    reverse: Annotated[bool | None, typer.Option(help="g2p: feed the letters in reverse order.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, shuffling and dropout.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    bfloat16: Annotated[
        bool,
        typer.Option("--bfloat16", help="Multiply in bfloat16: faster where the processor or card has it."),
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; 0: torch's own choice.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
) -> None:
    """Train a model and write a run folder: weights, configuration, metrics, plot.

    Ctrl-C keeps the last finished epoch; the same command with --resume continues from there.
    """
    console = Console(stderr=True)
    from streamcell.models import ModelError, RichProgress, train
    from streamcell.models.data.tables.options import TableOptions

    given = {
        "data": data,
        "data_folder": data_folder,
        "targets": _names(target),
        "table": TableOptions(
            separator=separator,
            decimal=decimal,
            thousands=thousands,
            quote=quote,
            encoding=encoding,
            comment=comment,
            header=header,
            missing=tuple(missing or ()),
            time=_names(time),
            day_first=day_first,
            columns=_names(columns),
            drop=_names(drop),
            categories=categories,
            gaps=gaps,
        ),
        "forecast": forecast,
        "season": season,
        "quantiles": _numbers(quantiles),
        "epochs": epochs,
        "minutes": minutes,
        "batch_size": batch_size,
        "window": window,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
        "patience": patience,
        "transpose": transpose,
        "stretch": stretch,
        "noise": noise,
        "stress": stress,
        "reverse": reverse,
        "seed": seed,
        "device": device,
        "bfloat16": bfloat16,
        "threads": threads,
    }
    try:
        config = _configure(dataset, out, given, model, hidden, layers, dropout, setting or [])
        with RichProgress(console) as progress:
            result = train(config, progress=progress, resume=resume, overwrite=overwrite)
    except ModelError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        console.print(
            f"interrupted: run the same command with --resume to continue [bold]{escape(str(out))}[/bold]"
        )
        raise typer.Exit(130) from None
    Console().print(_summary(result))
    if result.forecast is not None:
        Console().print(forecast_table(result.forecast))
        for line in warnings_of(result.forecast):
            console.print(f"[yellow]warning:[/yellow] {escape(line)}", highlight=False)


def _names(given: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in given.split(",") if name.strip())


def _numbers(given: str) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in given.split(",") if text.strip())
    except ValueError:
        raise typer.BadParameter(f"expected numbers between commas; got {given!r}") from None


def _configure(
    dataset: str,
    out: Path,
    given: dict[str, Any],
    kind: str | None,
    hidden: int | None,
    layers: int | None,
    dropout: float | None,
    settings: list[str],
) -> TrainConfig:
    """The data set's preset, changed by what the command line gives."""
    from streamcell.models.training import presets

    model = presets.model(dataset, kind, hidden=hidden, layers=layers, dropout=dropout)
    model |= dict(_setting(text) for text in settings)
    chosen = {name: value for name, value in given.items() if value is not None}
    return presets.config(dataset, out=out, model=model, **chosen)


def _setting(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"expected NAME=VALUE; got {given!r}", param_hint="--set")
    text = value.strip()
    if text.lower() in ("true", "false"):
        return name.strip(), text.lower() == "true"
    # Numbers and lists of numbers as JSON; a word stays a word.
    with contextlib.suppress(ValueError):
        return name.strip(), json.loads(text)
    return name.strip(), text


def _summary(result: TrainResult) -> Table:
    table = Table(show_header=False, box=None)
    table.add_row("test loss", f"{result.test_loss:.4f}")
    if result.test_accuracy is not None:
        table.add_row("test accuracy", f"{result.test_accuracy:.2%}")
    for name, value in result.measured.items():
        table.add_row(f"test {name.replace('_', ' ')}", f"{value:.2%}")
    table.add_row(
        "validation loss", f"{result.valid_loss:.4f} (epoch {result.best_epoch} of {result.epochs})"
    )
    table.add_row("time", f"{result.elapsed_s:.1f} s, stopped by {result.stopped}")
    table.add_row("run", escape(str(result.folder)))
    return table
