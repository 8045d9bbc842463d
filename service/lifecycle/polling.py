"""Keeps what is served in agreement with the folder of models, by looking at it again and again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import structlog

from streamcell.service.errors import ModelInUse, ModelLoadFailed
from streamcell.service.load_errors import ModelLoadError, load_failure
from streamcell.service.repository.locate import Located
from streamcell.service.repository.selection import by_name

from .changes import ModelChanges, stamp_of

_log = structlog.get_logger(__name__)


class ModelPoll:
    """Looks at a folder, each time it is asked to. For the model control's thread."""

    def __init__(
        self, locate: Callable[[], tuple[list[Located], list[ModelLoadError]]], changes: ModelChanges
    ) -> None:
        """`locate` says what is in the folder."""
        self._locate = locate
        self._changes = changes
        self._missing: set[str] = set()
        self._complaints: tuple[str, ...] = ()

    def look(self) -> None:
        """Make what is served agree with the folder, as far as it can be."""
        try:
            located, errors = self._locate()
        except ModelLoadError as error:
            self._complain((str(error),))
            return
        complaints = [str(error) for error in errors]
        groups = by_name(located)
        for name, files in groups.items():
            try:
                failed = self._changes.failed.get(name)
                if failed is None or failed[0] != stamp_of(files):
                    with suppress(ModelLoadFailed):  # noted and logged where it is raised
                        self._changes.agree(name, files)
            except Exception as error:  # a model that cannot even be looked at holds up no other
                complaints.append(str(load_failure(error, files[0].path)))
        missing = {model.file.name for model in self._changes.models} - groups.keys()
        # A file that is replaced by removing it first is missing for a moment: look twice.
        for name in sorted(missing & self._missing):
            try:
                self._changes.unload(name)
            except ModelInUse as error:  # asked again at the next look
                complaints.append(f"its file is gone, but it stays: {error}")
        self._missing = missing
        for name in self._changes.failed.keys() - groups.keys():
            del self._changes.failed[name]
        self._complain(tuple(complaints))

    def _complain(self, complaints: tuple[str, ...]) -> None:
        """Log what is wrong in the folder, once."""
        for complaint in complaints:
            if complaint not in self._complaints:
                _log.warning("folder of models", reason=complaint)
        self._complaints = complaints
