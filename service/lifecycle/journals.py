"""Where the sessions of each model are kept, if they are to outlive the server's processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from streamcell.service.durability.journal import Journal
from streamcell.service.durability.layout import Counts
from streamcell.service.durability.mapped_file import JournalError
from streamcell.service.engine.pool import MakeJournal
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.repository.model_file import ModelFile
from streamcell.service.settings import Settings

# Of the message that opened a session, without the values that it gave; and of each of these, without name and value.
_OPENING_BYTES, _VALUE_BYTES = 64, 32


def journal_maker(file: ModelFile, settings: Settings) -> MakeJournal | None:
    """What makes the journal of a model; None if the settings say that sessions end with the server."""
    root = settings.journal_dir
    if settings.durability == "none" or root is None:
        return None
    folder = root / quote(file.name, safe="") / quote(file.version, safe="")
    model = {"name": file.name, "version": file.version, "sha256": _digest(file)}
    given = sum(
        _VALUE_BYTES + len(value.name.encode()) + value.step_bytes for value in file.signature.open_inputs
    )

    def make(first_slot: int, states: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> Journal:
        counts = Counts(
            first_slot,
            settings.max_sessions,
            settings.queue_messages,
            settings.journal_reply_bytes,
            _OPENING_BYTES + given,
        )
        try:
            return Journal(folder, model, counts, states)
        except JournalError as error:
            raise ModelLoadError(f"its sessions cannot be kept in files: {error}") from error

    return make


def _digest(file: ModelFile) -> str:
    """SHA-256 of all that a model is made of: a state means nothing to another one."""
    digest = hashlib.sha256()
    for path in sorted(map(Path, file.watched)):
        if path.is_file():
            with path.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
