"""Why a model cannot be served: one exception class a cause, all of them found before the server is ready."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class ModelLoadError(Exception):
    """A model cannot be served.

    Attributes:
        reason: what was expected and what came.
        path: the file at fault; None where only a graph in memory is known.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        super().__init__(reason if path is None else f"{path}: {reason}")
        self.reason = reason
        self.path = path

    def at(self, path: Path) -> ModelLoadError:
        """The same error, naming `path` where it names no file yet."""
        return self if self.path is not None else type(self)(self.reason, path)


class SignatureError(ModelLoadError):
    """What the card or the sidecar says of the graph's inputs, outputs or states is not what the graph has."""


class SidecarError(ModelLoadError):
    """The TOML file beside a model is not valid."""


class DetectionError(ModelLoadError):
    """A graph without card and sidecar can be read in more than one way, or in none."""


class RewriteError(ModelLoadError):
    """The pool cannot be built into the graph."""


class RepositoryError(ModelLoadError):
    """One report of everything that is wrong in a models directory.

    Attributes:
        errors: one error a file, in the order of their paths.
    """

    def __init__(self, models_dir: Path, errors: Sequence[ModelLoadError]) -> None:
        count = f"{len(errors)} model{'s' if len(errors) != 1 else ''} cannot be served"
        super().__init__("\n".join([count, *(f"- {error}" for error in errors)]), models_dir)
        self.errors = tuple(errors)

    def at(self, path: Path) -> ModelLoadError:
        """Itself: every error in the report names its file already."""
        return self
