"""Find the models of a directory and what is needed to serve each.

`DIR/name.onnx` is version "1" of `name`; `DIR/name/<version>/model.onnx` is one of several. A card inside the
file, a sidecar beside it (`name.toml`, `model.toml`) or the graph itself gives the signature, in this order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from streamcell.card import Generation, ModelCard, Signature
from streamcell.service.graph.edit import all_tensors
from streamcell.service.load_errors import ModelLoadError, RepositoryError, load_failure

from .describe import Description, describe
from .locate import Located, Stamp, check_file, check_name, locate, sidecar_path, stamp
from .memory import available_bytes

# What protobuf can read, and how often a file is there at once while it is read.
_MOST_FILE_BYTES, _COPIES = 2**31 - 1, 2


@dataclass(frozen=True, eq=False)
class ModelFile:
    """One version of one model on disk.

    Attributes:
        name: the file's or the folder's name, or the one that the sidecar gives.
        version: a positive integer as text.
        path: the .onnx file.
        description: what its inputs, outputs and states are, and what says so.
        watched: the files that it is made of: `path`, the sidecar, there or not, and external data.
        stamp: of `watched`, from before they were read.
    """

    name: str
    version: str
    path: Path
    description: Description
    watched: tuple[Path, ...]
    stamp: Stamp

    @property
    def signature(self) -> Signature:
        """Its inputs, outputs and states."""
        return self.description.signature

    @property
    def card(self) -> ModelCard | None:
        """The card inside the file, also where a sidecar overrides its signature."""
        return self.description.card

    @property
    def constants(self) -> Mapping[str, npt.NDArray[Any]]:
        """Graph inputs that the sidecar fixes, by name, with the graph's dtypes."""
        return self.description.constants

    @property
    def generation(self) -> Generation | None:
        """How an output becomes the next input; None: it does not."""
        return self.description.generation

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum(size for _, size, _ in filter(None, self.stamp))

    @property
    def changed(self) -> bool:
        """Whether any of its files is no longer the one that was read."""
        return stamp(self.watched) != self.stamp

    def load(self) -> onnx.ModelProto:
        """Read the file with its weights, those in external files too, and make the graph that is served of it.

        Raises:
            ModelLoadError: the file or its external data cannot be read.
        """
        model = _read(self.path, external_data=True)
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in all_tensors(model)):
            raise ModelLoadError("it has external data where none can be read", self.path)
        return self.description.build(model)


def discover(models_dir: Path, *, follow_links: bool = False) -> list[ModelFile]:
    """Every model in `models_dir`, by name, a model's versions in numerical order (the newest is the last).

    Weights are not kept. Names that begin with a dot are skipped.

    Raises:
        ModelLoadError: `models_dir` is no folder that can be read.
        RepositoryError: one or more files cannot be served; the report names all of them.
    """
    located, errors = locate(models_dir, follow_links=follow_links)
    return open_all(models_dir, located, errors, follow_links=follow_links)


def open_all(
    models_dir: Path,
    located: Iterable[Located],
    errors: Iterable[ModelLoadError] = (),
    *,
    follow_links: bool = False,
) -> list[ModelFile]:
    """Open `located`; in the order and with the errors of `discover`, `errors` among them."""
    found: list[ModelFile] = []
    errors = list(errors)
    root = None if follow_links else models_dir
    for each in located:
        try:
            found.append(open_model(each.path, each.name, each.version, root))
        except ModelLoadError as error:
            errors.append(error)
    owners: dict[tuple[str, str], Path] = {}
    for file in found:
        first = owners.setdefault((file.name, file.version), file.path)
        if first != file.path:
            errors.append(
                ModelLoadError(f"model {file.name!r} version {file.version} is {first} already", file.path)
            )
    if errors:
        raise RepositoryError(models_dir, sorted(errors, key=lambda e: str(e.path)))
    return sorted(found, key=lambda f: (f.name, int(f.version)))


def open_model(path: Path, name: str, version: str = "1", root: Path | None = None) -> ModelFile:
    """Read one file's card, sidecar or graph. If there is a `root`, no link may lead out of that folder.

    Raises:
        ModelLoadError: it cannot be served.
    """
    try:
        return _open(path, name, version, root)
    except Exception as error:  # a file can be wrong in ways that nobody has thought of
        raise load_failure(error, path) from error


def _open(path: Path, name: str, version: str, root: Path | None) -> ModelFile:
    beside = sidecar_path(path)
    has_sidecar = os.path.lexists(beside)
    for each in (path, beside) if has_sidecar else (path,):
        check_file(each, root)
    before = stamp((path, beside))
    model = _read(path, external_data=False)
    external = _external(model, path.parent, root)
    found = describe(model, path, beside if has_sidecar else None)
    name = check_name(found.name or name, path)
    watched = (path, beside, *external)
    return ModelFile(name, version, path, found, watched, before + stamp(external))


def _external(model: onnx.ModelProto, folder: Path, root: Path | None) -> tuple[Path, ...]:
    """The files beside the model's that hold its weights.

    Raises:
        ModelLoadError: one is none, or is not beside it.
    """
    names = {
        entry.value
        for tensor in all_tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in names:
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelLoadError(f"its external data cannot be read: {name!r} is not in its own folder")
        if os.path.lexists(folder / name):  # that it is missing is told where it is read
            check_file(folder / name, root)
    return tuple(folder / name for name in sorted(names))


def _read(path: Path, *, external_data: bool) -> onnx.ModelProto:
    size = path.stat().st_size
    if size > _MOST_FILE_BYTES:
        raise ModelLoadError(
            f"an ONNX file has at most {_MOST_FILE_BYTES} bytes, this one has {size}; "
            "keep its weights as external data",
            path,
        )
    if _COPIES * size > (have := available_bytes()):
        raise ModelLoadError(f"too little memory to read its {size} bytes: {have} are available", path)
    try:
        model = onnx.load(path, load_external_data=external_data)
    except DecodeError as error:
        raise ModelLoadError(f"not an ONNX file: {error}", path) from error
    except OSError as error:
        raise ModelLoadError(f"cannot be read: {error.strerror or error}", path) from error
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelLoadError(f"its external data cannot be read: {error}", path) from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelLoadError("not an ONNX file: it holds no graph with outputs", path)
    return model
