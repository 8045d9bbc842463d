"""The build backend: setuptools', with the hot path compiled by mypyc if that is wanted and can be done.

`STREAMCELL_COMPILE=1`: a wheel is compiled, or its build fails. `STREAMCELL_COMPILE=0`: it is not compiled. Not set: it
is compiled if there is a C compiler; if that fails, it is not, and the build says so. An editable installation is never
compiled: its sources would change behind the compiled modules' backs.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

CHOICE = "STREAMCELL_COMPILE"
# Told to setup.py, which this process runs.
NOW = "STREAMCELL_COMPILE_NOW"


def _compiler() -> str | None:
    words = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    return shutil.which(words[0])


def _wanted() -> bool:
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"{CHOICE}: expected 0, 1 or nothing, got {choice!r}")
    return choice == "1" or (choice == "" and _compiler() is not None)


def _say(text: str) -> None:
    print(f"streamcell: {text}", file=sys.stderr)  # noqa: T201


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """To compile, mypy must see the types of all that the server imports."""
    needed: list[str] = build_meta.get_requires_for_build_wheel(config_settings)
    if _wanted():
        project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        lists = (project["dependencies"], extras["graph"], extras["runtime"], extras["compile"])
        needed += [each for some in lists for each in some if not each.startswith("streamcell[")]
    return needed


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    """Build the wheel, compiled if that is wanted and can be done."""
    arguments = (wheel_directory, config_settings, metadata_directory)
    if _wanted():
        os.environ[NOW] = "1"
        try:
            built: str = build_meta.build_wheel(*arguments)
        except (Exception, SystemExit) as error:
            if os.environ.get(CHOICE) == "1":
                raise
            _say(f"the hot path could not be compiled ({error}); the wheel is interpreted")
        else:
            return built
        finally:
            del os.environ[NOW]
    elif os.environ.get(CHOICE) != "0":
        _say(
            "there is no C compiler, so the hot path is not compiled: every step costs more CPU (docs/deploy.md)"
        )
    interpreted: str = build_meta.build_wheel(*arguments)
    return interpreted
