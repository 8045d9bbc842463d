"""Reads a TOML file that access depends on."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from .access_errors import AccessConfigError

F = TypeVar("F", bound=BaseModel)


def read_toml(flag: str, path: Path, form: type[F]) -> F:
    """What the file of `flag` says, checked.

    Raises:
        AccessConfigError: it is missing, no TOML, or has a wrong entry; the text names file and key, but no value.
    """
    try:
        said = tomllib.loads(path.read_text())
    except OSError as error:
        raise AccessConfigError(f"{flag} {path}: {error.strerror}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise AccessConfigError(f"{flag} {path}: no TOML: {error}") from error
    try:
        return form.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise AccessConfigError(f"{flag} {path}: {where}: {first['msg']}") from error
