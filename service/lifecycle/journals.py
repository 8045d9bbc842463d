"""Where the sessions of each model are kept, if they are to outlive the server's processes."""

from __future__ import annotations

from collections.abc import Sequence
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

# Of what opened a session or a sequence, with the longest id and tenant, without the values that it gave; and of each
# of these, without name and value.
_OPENING_BYTES, _VALUE_BYTES = 640 + 564, 32
_REQUEST_BYTES = 1024  # of a message that asks for a generation


def journal_maker(file: ModelFile, settings: Settings) -> MakeJournal | None:
    """What makes the journal of a model; None if the settings say that sessions end with the server."""
    if settings.durability == "none":
        return None
    folder = settings.journal_dir
    if folder is not None:  # else the store has what outlives the process
        folder = folder / quote(file.name, safe="") / quote(file.version, safe="")
    model = {"name": file.name, "version": file.version, "sha256": file.sha256}
    given = sum(
        _VALUE_BYTES + len(value.name.encode()) + value.step_bytes for value in file.signature.open_inputs
    )

    generation = file.generation
    last_bytes = sum(
        tensor.step_bytes
        for tensor in file.signature.outputs
        if generation is not None and tensor.name == generation.output
    )

    def make(first_slot: int, states: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> Journal:
        counts = Counts(
            first_slot,
            settings.max_sessions,
            settings.queue_messages,
            settings.journal_reply_bytes,
            _OPENING_BYTES + len(file.name.encode()) + given,
            last_bytes,
            _REQUEST_BYTES if last_bytes else 0,
            # A member's values of the opening are kept nowhere.
            0 if file.signature.open_inputs else settings.journal_frame_streams,
            settings.kept_reply_bytes,
        )
        try:
            return Journal(folder, model, counts, states)
        except JournalError as error:
            raise ModelLoadError(f"its sessions cannot be kept in files: {error}") from error

    return make
