"""Finds the models of a folder (names, versions, paths) without opening them, and detects changed files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from streamcell.service.load_errors import ModelLoadError

from .sidecar import nearest, read_sidecar, stage_files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")

# For each file its time of change in nanoseconds, size and inode; None if it does not exist.
Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Located:
    """A file that may be one version of a model.

    Attributes:
        path: an .onnx file, or the TOML file of a pipeline.
        name: the sidecar's name, if it has one.
        version: a positive integer as text.
        stages: the files that a pipeline names, existing or not.
        renamed: True if the sidecar's name differs from the file's or the folder's.
    """

    path: Path
    name: str
    version: str
    stages: tuple[Path, ...] = ()
    renamed: bool = False


def locate(models_dir: Path, *, follow_links: bool = False) -> tuple[list[Located], list[ModelLoadError]]:
    """All files of `models_dir` at places where a model can be, and errors for those where none can.

    Names that begin with a dot are skipped. Links within the folder are followed; those that lead out of it are
    errors, unless `follow_links`.

    Raises:
        ModelLoadError: `models_dir` is no folder that can be read.
    """
    if not models_dir.is_dir():
        came = "a file" if models_dir.exists() else "nothing"
        raise ModelLoadError(
            f"expected a folder of models, found {came}: --models names one with NAME.onnx in it", models_dir
        )
    errors: list[ModelLoadError] = []
    found: list[Located] = []
    root = None if follow_links else models_dir
    for each in _candidates(models_dir, root, errors):
        path = each.path
        try:
            check_file(path, root)
            name = check_name(_renamed(path, each.name, root), path)
            found.append(replace(each, name=name, renamed=name != each.name))
        except ModelLoadError as error:
            errors.append(error.at(path))
    return found, errors


def called(path: Path) -> tuple[str, str]:
    """The name and the version of the model file `path` by its place."""
    if path.stem == "model" and path.parent.name.isdecimal():
        return path.parent.parent.name, path.parent.name
    return path.stem, "1"


def check_name(name: str, path: Path) -> str:
    """Return `name` if a model can have it.

    Raises:
        ModelLoadError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ModelLoadError(
            f"{name!r} cannot be a model's name: expected letters, digits, '.', '_' and '-', at most 128, the first "
            f"a letter or a digit; rename the file or set `name` in {sidecar_path(path).name}",
            path,
        )
    return name


def check_file(path: Path, root: Path | None) -> None:
    """Raise ModelLoadError unless `path` is a readable regular file, and in `root`, if one is given."""
    _check_place(path, root)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ModelLoadError(f"cannot be read: {error.strerror}", path) from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        raise ModelLoadError(f"expected a file, found {kinds.get(stat.S_IFMT(mode), 'a device')}", path)


def _check_place(path: Path, root: Path | None) -> None:
    if root is None:
        return
    try:
        real = path.resolve(strict=True)
        inside = real.is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ModelLoadError(f"cannot be read: {getattr(error, 'strerror', None) or error}", path) from error
    if not inside:
        raise ModelLoadError(
            f"a link that leads out of the folder of models, to {real}; put the file itself there, or allow such links "
            "with --follow-links",
            path,
        )


def sidecar_path(path: Path) -> Path:
    """The path of the sidecar of the model file `path`; it may not exist."""
    return path.with_suffix(".toml")


def stamp(paths: Iterable[Path]) -> Stamp:
    """A stamp that changes when any of `paths` is written, replaced or removed."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(stamps)


def concerning(models_dir: Path, name: str, errors: Iterable[ModelLoadError]) -> list[ModelLoadError]:
    """The errors that name a file at a place of the model `name`."""
    places = (models_dir / name, models_dir / f"{name}.onnx")
    return [
        error
        for error in errors
        if error.path is not None and any(place in (error.path, *error.path.parents) for place in places)
    ]


def stray_sidecars(models_dir: Path, located: Iterable[Located]) -> list[ModelLoadError]:
    """Notes on TOML files without a model beside them; such a name is usually a typing error."""
    taken = {path for each in located for path in (each.path, sidecar_path(each.path))}
    folders = {models_dir, *(path.parent for path in taken), *(path.parent.parent for path in taken)}
    notes = []
    for folder in sorted(folder for folder in folders if folder.is_relative_to(models_dir)):
        near = {path.stem: path.name for path in taken if path.parent == folder and path.suffix == ".toml"}
        for path in _visible(folder):
            beside = path.with_suffix(".onnx")
            if path.suffix == ".toml" and path not in taken and not os.path.lexists(beside):
                meant = nearest(path.stem, near)
                hint = f"; did you mean {near[meant]!r}?" if meant else ""
                expected = f"there is no model beside it: expected {beside.name}, or [[stages]] in it"
                notes.append(ModelLoadError(f"{expected}{hint}", path))
    return notes


def _renamed(path: Path, name: str, root: Path | None) -> str:
    beside = sidecar_path(path)
    if not os.path.lexists(beside):
        return name
    try:
        check_file(beside, root)
        return read_sidecar(beside).name or name
    except ModelLoadError:  # opening the model reports it
        return name


def _candidates(models_dir: Path, root: Path | None, errors: list[ModelLoadError]) -> Iterator[Located]:
    """Each file to serve, by the name of file or folder; `errors` gets files at places where no model can be."""
    entries = _visible(models_dir)
    found = [each for each in entries if each.suffix == ".toml" and not each.is_dir()]
    pipelines = {each: stages for each in found if (stages := _stages(each, root)) is not None}
    # A pipeline's stage is not a model by itself.
    taken = {file for stages in pipelines.values() for file in stages}
    for entry in entries:
        if entry.is_dir():
            try:
                _check_place(entry, root)
                yield from _versions(entry, root, taken, errors)
            except ModelLoadError as error:
                errors.append(error.at(entry))
        elif entry in pipelines:
            yield Located(entry, entry.stem, "1", pipelines[entry])
        elif entry.suffix == ".onnx" and entry not in taken:
            yield Located(entry, entry.stem, "1")


def _stages(path: Path, root: Path | None) -> tuple[Path, ...] | None:
    """The files of the pipeline in the TOML file `path`; None if it is not a pipeline.

    If it cannot be read it has none, and is reported by who opens it.
    """
    if os.path.lexists(path.with_suffix(".onnx")):
        return None
    try:
        check_file(path, root)
        names = stage_files(path)
    except ModelLoadError:
        return ()
    return None if names is None else tuple(path.parent / name for name in names)


def _versions(
    folder: Path, root: Path | None, taken: Collection[Path], errors: list[ModelLoadError]
) -> Iterator[Located]:
    for entry in _visible(folder):
        where = f"expected {folder.name}/<version>/model.onnx with a positive integer as version"
        if entry in taken:
            continue
        if entry.suffix == ".onnx" and not entry.is_dir():
            errors.append(ModelLoadError(f"{where}; put it into {folder.name}/1/model.onnx", entry))
        elif entry.is_dir():
            _check_place(entry, root)
            files = [file for file in _visible(entry) if file.suffix == ".onnx" and file not in taken]
            if _VERSION.fullmatch(entry.name):
                if os.path.lexists(model := entry / "model.onnx"):
                    yield Located(model, folder.name, entry.name)
                elif (
                    os.path.lexists(toml := entry / "model.toml")
                    and (stages := _stages(toml, root)) is not None
                ):
                    yield Located(toml, folder.name, entry.name, stages)
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
