"""Inspects one model file by loading it like the server does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from streamcell.service.engine.device import Device
from streamcell.service.graph.interface import GraphInterface
from streamcell.service.load_errors import ModelLoadError, load_failure
from streamcell.service.repository.describe import Description
from streamcell.service.repository.locate import Located, called, sidecar_path, stray_sidecars
from streamcell.service.repository.model_file import interface_of, open_model
from streamcell.service.repository.sidecar_template import likely_pairs, sidecar_template
from streamcell.service.repository.sidecar_text import sidecar_text
from streamcell.service.settings import Settings

from .loaded_model import load


@dataclass(frozen=True)
class Inspection:
    """The known facts about a model file.

    Attributes:
        path: the .onnx file, or the TOML file of a pipeline.
        name: the name that it is served under.
        version: a positive integer as text.
        interface: the inputs and outputs that the graph declares; None if it cannot be read.
        description: its inputs, outputs and states, and their source; None if that is unclear.
        likely_states: if it is unclear, input → output of likely states.
        problems: why it cannot be served; empty: it can.
        notes: points that may be mistakes.
        proof: the comparisons made when it was loaded; "" if it was not.
        restrictions: its restrictions, with reasons.
        arithmetic: what it multiplies in, with the reason; "" if it was not loaded.
        max_batch: maximum sessions in a run, 0 if it cannot be served.
        max_chunk: maximum timesteps of a session in a run, 0 if it cannot be served.
    """

    path: Path
    name: str
    version: str
    interface: GraphInterface | None
    description: Description | None
    likely_states: Mapping[str, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    proof: str = ""
    restrictions: tuple[str, ...] = ()
    arithmetic: str = ""
    max_batch: int = 0
    max_chunk: int = 0

    @property
    def sidecar(self) -> Path:
        """The path of its sidecar; it may not exist."""
        return sidecar_path(self.path)

    def sidecar_text(self) -> str | None:
        """A sidecar with the known values and a `?` for each unknown one; None if the graph cannot be read."""
        if self.description is not None:
            return sidecar_text(self.description)
        return None if self.interface is None else sidecar_template(self.interface)


def inspect_model(path: Path, settings: Settings) -> Inspection:
    """Read, describe, load, prove and warm up the model in `path`, like a server with `settings`.

    Raises:
        DeviceError: the device is not available.
    """
    device = Device.parse(settings.device, tf32=settings.tf32)
    device.check()
    name, version = called(path)
    problems: list[str] = []
    interface = file = None
    try:
        interface = interface_of(path)
        file = open_model(path, name, version)
    except Exception as error:  # a file can be wrong in unexpected ways
        problems += _problems(load_failure(error, path), path)
    described = Inspection(
        path,
        name if file is None else file.name,
        version,
        interface,
        None if file is None else file.description,
        likely_pairs(interface) if interface is not None and file is None else {},
        tuple(problems),
        (*_strays(path), *(() if file is None else _doubts(file.description))),
    )
    if file is None:
        return described
    try:
        model = load(file, settings, device)
    except ModelLoadError as error:
        return replace(described, problems=tuple(_problems(error, path)))
    try:
        return replace(
            described,
            proof=model.proof,
            restrictions=model.restrictions,
            arithmetic=model.arithmetic,
            max_batch=model.max_batch,
            max_chunk=model.max_chunk,
        )
    finally:
        model.release()


def _problems(error: ModelLoadError, path: Path) -> list[str]:
    """The problems one by one; files other than `path` are named."""
    begin = "" if error.path in (None, path) else f"{error.path.name}: "
    return [begin + text for text in error.problems]


def _strays(path: Path) -> list[str]:
    """TOML files beside no model that may be meant for this one."""
    if not path.parent.is_dir() or sidecar_path(path).exists():
        return []
    strays = stray_sidecars(path.parent, [Located(path, path.stem, "1")])
    return [str(each) for each in strays if repr(sidecar_path(path).name) in each.reason]


def _doubts(description: Description) -> list[str]:
    return [f"{each} may be a state: if it is, describe it in a sidecar" for each in description.doubts]
