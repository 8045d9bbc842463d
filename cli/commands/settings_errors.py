"""What is wrong with the server's settings: where each bad one was given, and the nearest valid name."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

PREFIX = "STREAMCELL_"
# Variables with this prefix that are no settings of the server: of the command line, of the build, of compose.yaml.
_OTHERS = ("config", "target", "bearer_file", "compile", "compiled", "compile_level", "compile_now", "bind")
# What Kubernetes sets in each pod for a Service called streamcell.
_OF_KUBERNETES = re.compile(r"(?i)streamcell_(service_(host|port.*)|port(_\d+_(tcp|udp|sctp).*)?)")
_LINKS = "Kubernetes sets it for a Service called streamcell: set enableServiceLinks: false in the pod's spec"


def explain(error: ValidationError, path: Path | None, flags: Mapping[str, Any]) -> list[str]:
    """One line for each problem: the flag, the variable or the file's line, what is wrong, and what to do.

    Args:
        error: of `Settings.load`.
        path: the TOML file, if there is one.
        flags: those of the command line; None: not given.
    """
    known = tuple(_fields())
    text = _text(path)
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        key = str(problem["loc"][0]) if problem["loc"] else ""
        told = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            told = f"there is no such setting{_nearest(key, known)}; streamcell serve --help lists them"
        elif problem["type"] == "missing":
            lines.append(
                f"{name}: it is not given: --{_flag(name)}, {PREFIX}{name.upper()}, or {name} in the file"
            )
            continue
        elif problem["loc"]:
            told = f"{told}, got {problem['input']!r}"
        if not key:
            lines.append(told)
        elif flags.get(key) is not None:
            lines.append(f"--{_flag(key)}: {told}")
        elif (variable := _variable(key)) is not None:
            told = f"{told}; {_LINKS}" if _of_kubernetes(variable) else told
            lines.append(f"{variable}: {told}")
        elif path is not None:
            lines.append(f"{path}:{_line(text, key)}: {name}: {told}")
        else:
            lines.append(f"{name}: {told}")
    return lines


def broken_toml(error: tomllib.TOMLDecodeError, path: Path) -> str:
    """Why a file is no TOML, with its place and its line."""
    place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
    if place is None:
        return f"{path}: not TOML: {error}"
    number = int(place[1])
    lines = _text(path).splitlines()
    line = lines[number - 1].strip() if number <= len(lines) else ""
    what = str(error)[: place.start()].strip()
    return f"{path}:{number}: not TOML: {what}, in: {line}; a line is KEY = VALUE, with texts in quotes"


def unknown_variables() -> Iterator[tuple[str, str]]:
    """Variables that begin like settings and are none, each with the setting that was probably meant, or ""."""
    known = [name.upper() for name in (*_fields(), *_OTHERS)]
    for variable in sorted(os.environ):
        if variable.upper().startswith(PREFIX) and not _of_kubernetes(variable):
            name = variable.upper().removeprefix(PREFIX)
            if name not in known:
                yield variable, next(iter(get_close_matches(name, known, 1, 0.8)), "")


def _fields() -> Iterable[str]:
    from streamcell.service import Settings

    return Settings.model_fields


def _of_kubernetes(variable: str) -> bool:
    if variable.upper() == f"{PREFIX}PORT":  # also a setting
        return os.environ[variable].startswith(("tcp://", "udp://"))
    return _OF_KUBERNETES.fullmatch(variable) is not None


def _nearest(key: str, known: Iterable[str]) -> str:
    near = get_close_matches(key.replace("-", "_").lower(), known, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _variable(key: str) -> str | None:
    """The variable that gives a setting, as it is spelled there."""
    return next((name for name in os.environ if name.lower() == (PREFIX + key).lower()), None)


def _text(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text()
    except (OSError, ValueError):
        return ""


def _line(text: str, key: str) -> int:
    """The number of the line that gives `key`, or 1."""
    begins = re.compile(rf"""\s*(\[\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if begins.match(line)), 1)
