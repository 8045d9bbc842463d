"""`streamcell`: one Typer application; each command lives in a module of its own and imports its needs lazily.

A command module has one function, `command`, whose signature is the command line. It imports only typer, rich
and the standard library at module level, so that `streamcell --help` works on the base install.
"""

from __future__ import annotations

import importlib

import typer

app = typer.Typer(
    name="streamcell",
    help="Serve recurrent PyTorch models as live sessions.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

COMMANDS = ("train", "export", "serve", "stream", "demo")

for _name in COMMANDS:
    _module = importlib.import_module(f".{_name}_command", __package__)
    app.command(_name, rich_help_panel=None)(_module.command)


def main() -> None:
    """Entry point of the console script."""
    app()
