"""The server's settings for commands that run its code."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from streamcell.service import Settings


def read_settings(command: str, config: Path | None, flags: dict[str, Any]) -> Settings:
    """The settings of flags, `STREAMCELL_*` and a TOML file; exits with code 2 if one is wrong, and says which."""
    from pydantic import ValidationError

    from streamcell.service import Settings

    from .settings_errors import PREFIX, broken_toml, explain, unknown_variables

    path = config or (Path(name) if (name := os.environ.get(f"{PREFIX}CONFIG")) else None)
    problems = []
    for variable, meant in unknown_variables():
        if meant:
            problems.append(f"{variable}: there is no such setting; did you mean {PREFIX}{meant}?")
        else:
            typer.echo(f"streamcell {command}: {variable} is no setting and changes nothing", err=True)
    try:
        settings = Settings.load(path, **flags)
    except ValidationError as error:
        problems += explain(error, path, flags)
    except tomllib.TOMLDecodeError as error:
        assert path is not None
        problems.append(broken_toml(error, path))
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not TOML in UTF-8: {error.reason}")
    except (OSError, ValueError) as error:
        problems.append(str(error))
    else:
        if not problems:
            return settings
    for problem in problems:
        typer.echo(f"streamcell {command}: {problem}", err=True)
    sys.exit(2)


def end_with_loads(code: int) -> None:
    """End the process if a load that was given up still runs: the interpreter would wait for it."""
    from streamcell.service.lifecycle.load_thread import abandoned

    if abandoned():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
