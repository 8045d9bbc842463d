"""Finds the models of a folder and reads their descriptions.

`DIR/name.onnx` is version "1" of `name`; `DIR/name/<version>/model.onnx` is one of several. A sidecar beside the file
(`name.toml`, `model.toml`), a card inside it or the graph itself gives the signature, in this order. A TOML file that
names stages stands for a model of several files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from streamcell.card import Generation, ModelCard, Signature
from streamcell.service.graph.interface import GraphInterface, read_interface
from streamcell.service.load_errors import ModelLoadError, RepositoryError, UntrustedModelError, load_failure

from .describe import Description, describe
from .locate import Located, Stamp, check_file, check_name, locate, sidecar_path, stamp
from .onnx_file import external_files, read_onnx
from .pipeline import read_pipeline, read_stages
from .sidecar import Stage
from .signed import SignedFiles, TrustedKeys, check_called, signature_path


@dataclass(frozen=True, eq=False)
class ModelFile:
    """One version of one model on disk.

    Attributes:
        name: the sidecar's name, else the file's or the folder's.
        version: a positive integer as text.
        path: the .onnx file, or the TOML file of a pipeline.
        description: its inputs, outputs and states, and their source.
        watched: its files: `path`, the sidecar (existing or not), stages and external data.
        stamp: the stamp of `watched`, taken before they were read.
        stages: the stages of a pipeline.
        signed: what its files must be, if the server demands a signature.
    """

    name: str
    version: str
    path: Path
    description: Description
    watched: tuple[Path, ...]
    stamp: Stamp
    stages: tuple[Stage, ...] = ()
    signed: SignedFiles | None = None

    @property
    def signature(self) -> Signature:
        """Its inputs, outputs and states."""
        return self.description.signature

    @property
    def card(self) -> ModelCard | None:
        """The card inside the file, even if a sidecar overrides its signature."""
        return self.description.card

    @property
    def constants(self) -> Mapping[str, npt.NDArray[Any]]:
        """Graph inputs that the sidecar fixes, by name, with the graph's dtypes."""
        return self.description.constants

    @property
    def generation(self) -> Generation | None:
        """How an output becomes the next input; None: the model does not generate."""
        return self.description.generation

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum(size for _, size, _ in filter(None, self.stamp))

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hexadecimal, of all that it is made of: a state means nothing to another model."""
        digest = hashlib.sha256()
        for path in sorted(self.watched):
            if self.signed is not None:
                if path in self.signed:
                    digest.update(self.signed.sha256(path))
            elif path.is_file():
                with path.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()

    @property
    def changed(self) -> bool:
        """True if any of its files has changed since it was read."""
        return stamp(self.watched) != self.stamp

    def load(self) -> onnx.ModelProto:
        """Read the file with all weights, those in external files too, and make the graph to serve.

        Raises:
            ModelLoadError: the file or its external data cannot be read.
            UntrustedModelError: they are not what was signed.
        """
        if self.stages:
            model = read_pipeline(self.path, self.stages, None, weights=True, signed=self.signed).model
        else:
            model = read_onnx(self.path, weights=True, signed=self.signed)
        return self.description.build(model)


@dataclass(frozen=True)
class Found:
    """The content of a folder of models.

    Attributes:
        files: every file that can be opened, by name, a model's versions in numerical order (the newest is the last).
        errors: one for each file that cannot be served.
        notes: remarks that are not errors but may explain some.
    """

    files: list[ModelFile]
    errors: list[ModelLoadError]
    notes: list[ModelLoadError]


def discover(models_dir: Path, *, follow_links: bool = False) -> list[ModelFile]:
    """Every model in `models_dir`, by name, a model's versions in numerical order (the newest is the last).

    Weights are not kept. Names that begin with a dot are skipped.

    Raises:
        ModelLoadError: `models_dir` is no folder that can be read.
        RepositoryError: one or more files cannot be served; the report names all of them.
    """
    located, errors = locate(models_dir, follow_links=follow_links)
    found = open_all(located, errors, root=None if follow_links else models_dir)
    if found.errors:
        raise RepositoryError(models_dir, found.errors)
    return found.files


def open_all(
    located: Iterable[Located],
    errors: Iterable[ModelLoadError] = (),
    notes: Iterable[ModelLoadError] = (),
    *,
    root: Path | None,
    trust: TrustedKeys | None = None,
) -> Found:
    """Open `located`, like `open_model`. Their errors are appended to `errors`."""
    files: list[ModelFile] = []
    errors = list(errors)
    for each in located:
        try:
            files.append(open_model(each.path, each.name, each.version, root, trust))
        except ModelLoadError as error:
            errors.append(error)
    owners: dict[tuple[str, str], Path] = {}
    for file in files:
        first = owners.setdefault((file.name, file.version), file.path)
        if first != file.path:
            errors.append(
                ModelLoadError(f"model {file.name!r} version {file.version} is {first} already", file.path)
            )
    return Found(sorted(files, key=lambda f: (f.name, int(f.version))), errors, list(notes))


def interface_of(path: Path) -> GraphInterface:
    """The inputs and outputs that the file `path` declares, or all files of the pipeline that it describes.

    Raises:
        ModelLoadError: a file cannot be read, or they do not make one graph.
    """
    if path == sidecar_path(path):
        model = read_pipeline(path, read_stages(path), None, weights=False).model
    else:
        check_file(path, None)
        model = read_onnx(path, weights=False)
    return read_interface(model.graph)


def open_model(
    path: Path, name: str, version: str = "1", root: Path | None = None, trust: TrustedKeys | None = None
) -> ModelFile:
    """Read one file's card, sidecar or graph.

    Args:
        path: the .onnx file, or the TOML file of a pipeline.
        name: the model's, unless its sidecar names it.
        version: a positive integer as text.
        root: the folder that no link may lead out of, if there is one.
        trust: the keys of which one must have signed the model, if the server demands it.

    Raises:
        UntrustedModelError: no such key has signed these files under this name and version.
        ModelLoadError: it cannot be served.
    """
    try:
        return _open(path, name, version, root, trust)
    except Exception as error:  # a file can be wrong in unexpected ways
        raise load_failure(error, path) from error


def _open(path: Path, name: str, version: str, root: Path | None, trust: TrustedKeys | None) -> ModelFile:
    beside = sidecar_path(path)
    own = (path, beside) if trust is None else (path, beside, signature_path(path))
    before = stamp(own)
    signed = None if trust is None else trust.check(path)
    has_sidecar = os.path.lexists(beside)
    if signed is not None and has_sidecar != (beside in signed):
        raise UntrustedModelError(
            f"its sidecar {beside.name} "
            + ("is not in its signature; remove it" if has_sidecar else "was signed and is gone; put it back")
            + ", or sign the model again",
            path,
        )
    for each in (path, beside) if has_sidecar else (path,):
        check_file(each, root)
    stages: tuple[Stage, ...] = ()
    if path == beside:
        stages = read_stages(path, signed)
        whole = read_pipeline(path, stages, root, weights=False, signed=signed)
        parts = whole.files
        found = describe(whole.model, path, beside, whole.states, signed)
    else:
        model = read_onnx(path, weights=False, signed=signed)
        parts = external_files(model, path.parent, root)
        found = describe(model, path, beside if has_sidecar else None, signed=signed)
    name = check_name(found.name or name, path)
    if signed is not None:
        check_called(signed, name, version, path)
    return ModelFile(name, version, path, found, (*own, *parts), before + stamp(parts), stages, signed)
