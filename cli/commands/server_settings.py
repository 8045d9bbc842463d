"""The server's settings for commands that run its code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from streamcell.service import Settings


def read_settings(command: str, config: Path | None, flags: dict[str, Any]) -> Settings:
    """The settings of flags, `STREAMCELL_*` and a TOML file; exits with code 2 if one is wrong, and says which."""
    from pydantic import ValidationError

    from streamcell.service import Settings

    try:
        return Settings.load(config, **flags)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            typer.echo(f"streamcell {command}: {name}: {problem['msg']}", err=True)
    except (FileNotFoundError, ValueError) as error:  # ValueError: the TOML does not parse
        typer.echo(f"streamcell {command}: {error}", err=True)
    sys.exit(2)


def end_with_loads(code: int) -> None:
    """End the process if a load that was given up still runs: the interpreter would wait for it."""
    from streamcell.service.lifecycle.load_thread import abandoned

    if abandoned():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
