"""Why a model cannot be served: one exception class for each cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

# Characters of one file's error. It may contain a draft of a sidecar.
MOST_TEXT = 16_384
# Problems that one error tells; a hostile file has any number of them.
MOST_PROBLEMS = 100


class ModelLoadError(Exception):
    """A model cannot be served.

    Attributes:
        reason: what was expected and what was found.
        path: the file at fault; None for a graph in memory.
        problems: what `reason` tells, one by one.
        context: the end of `reason`, which helps to solve them.
    """

    def __init__(
        self, reason: str, path: Path | None = None, problems: Iterable[str] = (), context: str = ""
    ) -> None:
        self._begin = reason
        reason = printable(_clipped(f"{reason}\n{context}" if context else reason))
        super().__init__(reason if path is None else f"{printable(str(path))}: {reason}")
        self.reason = reason
        self.path = path
        self.problems = tuple(printable(_clipped(text)) for text in problems) or (reason,)
        self.context = context

    def at(self, path: Path) -> ModelLoadError:
        """The same error, naming `path` if it names no file yet."""
        return self if self.path is not None else type(self)(self._begin, path, self.problems, self.context)


def load_failure(error: Exception, path: Path) -> ModelLoadError:
    """Any exception that reading or loading `path` has raised, as one of these."""
    if isinstance(error, ModelLoadError):
        return error.at(path)
    _log.debug("model not loaded", path=printable(str(path)), exc_info=error)
    if isinstance(error, RecursionError):
        return ModelLoadError("it is nested too deeply", path)
    if isinstance(error, MemoryError):
        return ModelLoadError(f"too little memory to load it: {error}; give the server more memory", path)
    if isinstance(error, DeviceError):
        return ModelLoadError(str(error), path)
    return ModelLoadError(f"{type(error).__name__}: {error}; run with --log-level debug to see where", path)


def _clipped(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}… ({len(text)} characters)"


def printable(text: str) -> str:
    """`text` with undecodable bytes and control characters escaped, for terminals and protobuf strings."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


class Problems:
    """Gathers what is wrong with a file, so that one error tells all of it, or a hundred problems of more.

    Attributes:
        context: of the first error noted that has one.
    """

    def __init__(self) -> None:
        # Ordered, and each text once.
        self._texts: dict[str, None] = {}
        self._more = False
        self.context = ""

    def add(self, text: str) -> None:
        """Note one problem."""
        text = _clipped(text)
        if len(self._texts) < MOST_PROBLEMS:
            self._texts[text] = None
        else:
            self._more = self._more or text not in self._texts

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note a ModelLoadError of the block and go on behind it."""
        try:
            yield
        except ModelLoadError as error:
            for text in error.problems:
                self.add(text)
            self.context = self.context or error.context

    def __bool__(self) -> bool:
        return bool(self._texts)

    def __iter__(self) -> Iterator[str]:
        yield from self._texts
        if self._more:
            yield "… and more"

    def __str__(self) -> str:
        """The only problem, or how many there are and one below another."""
        if len(self._texts) == 1:
            return next(iter(self._texts))
        listed = "\n".join(["  - " + text.replace("\n", "\n    ") for text in self])
        return f"{'more than ' * self._more}{len(self._texts)} problems:\n{listed}"


class DeviceError(RuntimeError):
    """The requested device, or a feature of it, is not available; the text says why."""


class SignatureError(ModelLoadError):
    """The card or the sidecar contradicts the graph's inputs, outputs or states."""


class UntrustedModelError(ModelLoadError):
    """The server serves signed models only, and no trusted key has signed this one as it is."""


class SidecarError(ModelLoadError):
    """The TOML file beside a model is not valid."""


class DetectionError(ModelLoadError):
    """A graph without card and sidecar can be read in more than one way, or in none."""


class GrowingStateError(ModelLoadError):
    """A state is larger after a step than before it, as a cache is that keeps every timestep."""


class PipelineError(ModelLoadError):
    """The stages of a pipeline do not make one graph."""


class RewriteError(ModelLoadError):
    """The pool cannot be built into the graph."""


class RepositoryError(ModelLoadError):
    """One report of everything that is wrong in a models directory.

    Attributes:
        errors: one error a file, in the order of their paths.
    """

    def __init__(
        self, models_dir: Path, errors: Iterable[ModelLoadError], notes: Sequence[ModelLoadError] = ()
    ) -> None:
        """`notes`: what is no error and may be why there are some."""
        errors = sorted(errors, key=lambda error: str(error.path))
        count = f"{len(errors)} model{'s' if len(errors) != 1 else ''} cannot be served"
        super().__init__(count, models_dir)
        self.args = ("\n".join([str(self), *(f"- {error}" for error in (*errors, *notes))]),)
        self.errors = tuple(errors)

    def at(self, path: Path) -> ModelLoadError:
        """Itself: every error in the report names its file already."""
        return self
