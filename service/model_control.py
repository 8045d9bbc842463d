"""Which models are loaded, and how that may be changed while the server runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .errors import ModelControlOff
from .loaded import Models


@dataclass(frozen=True)
class IndexEntry:
    """One version of a model in the repository.

    Attributes:
        state: "READY", "LOADING", "UNLOADING", "UNAVAILABLE", or "" for one that was never loaded.
        reason: why it is in that state, where there is something to say.
    """

    name: str
    version: str
    state: str
    reason: str = ""


class ModelControl(Protocol):
    """What the repository calls act on. Each method may take as long as loading a model takes."""

    def index(self) -> list[IndexEntry]:
        """Every version of every model that is loaded, or was, or could be."""

    def load(self, name: str) -> None:
        """Load a model, or its newest version; returns once it can be used. Raises a ServiceError."""

    def unload(self, name: str) -> None:
        """Unload every version of a model. Raises a ServiceError."""


class NoModelControl:
    """The models are those of the start (a `ModelControl`)."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def index(self) -> list[IndexEntry]:
        """Every loaded version."""
        return [IndexEntry(model.file.name, model.file.version, "READY") for model in self._models]

    def load(self, name: str) -> None:
        """Raises ModelControlOff."""
        raise ModelControlOff(f"explicit model load / unload is not allowed: model control is off; {name!r}")

    def unload(self, name: str) -> None:
        """Raises ModelControlOff."""
        self.load(name)
