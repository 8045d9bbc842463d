"""Pipelines: a TOML file with [[stages]] and no model beside it makes one model of several files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from streamcell.card import CardError, read_card
from streamcell.service.errors import shown
from streamcell.service.graph.merge import Part, merge
from streamcell.service.load_errors import ModelLoadError, PipelineError, Problems, SidecarError

from .locate import check_file
from .onnx_file import MOST_FILE_BYTES, check_readable, external_files, read_onnx
from .sidecar import SidecarState, Stage, inspect_sidecar, is_below
from .signed import SignedFiles

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,64}")
# The prefix of the server's own values.
_RESERVED = "streamcell"


def read_stages(path: Path, signed: SignedFiles | None = None) -> tuple[Stage, ...]:
    """The stages that the TOML file `path` names.

    Raises:
        SidecarError: the file is not valid.
        PipelineError: two have one name, or one has a name that none can have.
    """
    said, problems = inspect_sidecar(path, signed)
    if said is None:
        raise SidecarError(str(problems), path, problems)
    if not said.stages:
        raise PipelineError("stages: there is none, and no .onnx file is beside this one", path)
    labels = [stage.label for stage in said.stages]
    wrong = Problems()
    for label in labels:
        if not _LABEL.fullmatch(label) or label == _RESERVED:
            wrong.add(
                f"stages: {shown(label)} cannot be a stage's name: expected letters, digits, '_' and '-', at most 64, "
                f"and not {_RESERVED!r}; set name"
            )
        if labels.count(label) > 1:
            wrong.add(f"stages: {shown(label)} is the name of {labels.count(label)} stages; set name")
    if wrong:
        raise PipelineError(str(wrong), path)
    return said.stages


@dataclass(frozen=True)
class Pipeline:
    """The content of a pipeline's files.

    Attributes:
        model: all files merged into one.
        files: its files, including those with weights.
        states: the states of stages with a card, as it describes them.
    """

    model: onnx.ModelProto
    files: tuple[Path, ...]
    states: tuple[SidecarState, ...]


def read_pipeline(
    path: Path,
    stages: Sequence[Stage],
    root: Path | None,
    *,
    weights: bool,
    signed: SignedFiles | None = None,
) -> Pipeline:
    """Read the files of all stages.

    Args:
        path: the TOML file, in whose folder the stages' files are.
        stages: its stages.
        root: the folder that no link may lead out of, if there is one.
        weights: True to read weights in external files too.
        signed: what they must be, if the model is signed.

    Raises:
        ModelLoadError: a file cannot be read, or is not in the folder; it names the file.
        PipelineError: they do not make one graph.
    """
    files = [_file(path, stage, root) for stage in stages]
    total = sum(file.stat().st_size for file in files)
    if total > MOST_FILE_BYTES:
        raise PipelineError(
            f"stages: all files have at most {MOST_FILE_BYTES} bytes, these have {total}", path
        )
    check_readable(total, path)
    parts: list[Part] = []
    watched = dict.fromkeys(files)
    states: list[SidecarState] = []
    for stage, file in zip(stages, files, strict=True):
        try:
            model = read_onnx(file, weights=weights, signed=signed)
            if not weights:
                watched |= dict.fromkeys(external_files(model, file.parent, root))
            states += _carded(model, stage)
        except ModelLoadError as error:
            raise error.at(file) from error
        parts.append(Part(stage.label, model, stage.wires))
    try:
        return Pipeline(merge(parts), tuple(watched), tuple(states))
    except PipelineError as error:
        raise error.at(path) from error


def _carded(model: onnx.ModelProto, stage: Stage) -> list[SidecarState]:
    """The states that a stage's card describes, except those fed by a wire, by their names in the pipeline."""
    try:
        card = read_card(model)
    except CardError as error:
        raise ModelLoadError(str(error)) from error
    return [
        SidecarState(
            input=f"{stage.label}.{state.input}",
            output=f"{stage.label}.{state.output}",
            **state.model_dump(exclude={"input", "output"}),
        )
        for state in (card.signature.states if card is not None else ())
        if state.input not in stage.wires
    ]


def _file(path: Path, stage: Stage, root: Path | None) -> Path:
    if not is_below(stage.file):
        raise PipelineError(
            f"stages: {shown(stage.label)}: file = {shown(stage.file)} is not in the folder of {path.name}",
            path,
        )
    file = path.parent / stage.file
    try:
        check_file(file, root)
    except ModelLoadError as error:
        raise error.at(file) from error
    return file
