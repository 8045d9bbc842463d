"""Where the models of a directory are: names, versions and paths, without opening a model; and when one has changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .load_errors import ModelLoadError, SidecarError
from .sidecar import read_sidecar

_VERSION = re.compile(r"[1-9][0-9]{0,17}")

# Of each file its time of change in nanoseconds, size and inode; None where it is not there.
Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Located:
    """A file that may be one version of a model. `name` is the sidecar's where that gives one."""

    path: Path
    name: str
    version: str


def locate(models_dir: Path) -> tuple[list[Located], list[ModelLoadError]]:
    """Every file of `models_dir` that stands where a model can be, and what stands where none can.

    Names that begin with a dot are skipped.

    Raises:
        ModelLoadError: `models_dir` is no folder that can be read.
    """
    if not models_dir.is_dir():
        came = "a file" if models_dir.exists() else "nothing"
        raise ModelLoadError(f"expected a folder of models, found {came}", models_dir)
    errors: list[ModelLoadError] = []
    found = [
        Located(path, _renamed(path, name), version)
        for path, name, version in _candidates(models_dir, errors)
    ]
    return found, errors


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of the model file `path` is, if it has one."""
    return path.with_suffix(".toml")


def stamp(paths: Iterable[Path]) -> Stamp:
    """What changes when any of `paths` is written, replaced or removed."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(stamps)


def _renamed(path: Path, name: str) -> str:
    beside = sidecar_path(path)
    if not beside.is_file():
        return name
    try:
        return read_sidecar(beside).name or name
    except SidecarError:  # it is reported where the model is opened
        return name


def _candidates(models_dir: Path, errors: list[ModelLoadError]) -> Iterator[tuple[Path, str, str]]:
    """Path, name and version of each file to serve; what lies where no model can be goes to `errors`."""
    for entry in _visible(models_dir):
        if entry.is_file() and entry.suffix == ".onnx":
            yield entry, entry.stem, "1"
        elif entry.is_dir():
            yield from _versions(entry, errors)


def _versions(folder: Path, errors: list[ModelLoadError]) -> Iterator[tuple[Path, str, str]]:
    for entry in _visible(folder):
        where = f"expected {folder.name}/<version>/model.onnx with a positive integer as version"
        if entry.is_file() and entry.suffix == ".onnx":
            errors.append(ModelLoadError(f"{where}; put it into {folder.name}/1/model.onnx", entry))
        elif entry.is_dir():
            files = [file for file in _visible(entry) if file.suffix == ".onnx"]
            if _VERSION.fullmatch(entry.name):
                if (model := entry / "model.onnx").is_file():
                    yield model, folder.name, entry.name
                else:
                    found = ", ".join(file.name for file in files) or "no .onnx file"
                    errors.append(ModelLoadError(f"expected model.onnx, found {found}", entry))
            elif files:
                errors.append(ModelLoadError(f"{where}, found {entry.name!r}", entry))


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ModelLoadError(f"cannot be read: {error.strerror}", folder) from error
