"""The standard JSON layout of the JSB chorales: {"train": [[[midi notes], …], …], "valid": …, "test": …}."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from streamcell.models.errors import DataError

from .chorales import piano_data
from .piano import KEYS, LOWEST, Roll
from .sequences import SequenceData
from .splits import SPLITS


def load_jsb(path: Path) -> SequenceData:
    """Read pieces as lists of timesteps, each the list of sounding MIDI pitches; −1 in it means a rest.

    Unlike `load_chorales`, the file is taken as it is: silent timesteps stay and nothing is de-duplicated.

    Raises:
        DataError: the file is not there or not of this layout; the text names the piece and the timestep.
    """
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or (missing := [part for part in SPLITS if part not in document]):
        what = f"lacks {', '.join(missing)}" if isinstance(document, dict) else "is not an object"
        raise DataError(f'{path} {what}; expected {{"train": [[[midi notes], …], …], "valid": …, "test": …}}')
    parts = {part: _rolls(document[part], f"{path}: {part}") for part in SPLITS}
    return piano_data(path.stem, parts, {"source": path.name})


def _rolls(pieces: Any, where: str) -> list[Roll]:
    if not isinstance(pieces, list):
        raise DataError(f"{where} must be a list of pieces; got {type(pieces).__name__}")
    return [_roll(piece, f"{where}[{index}]") for index, piece in enumerate(pieces)]


def _roll(piece: Any, where: str) -> Roll:
    if not isinstance(piece, list) or len(piece) < 2:
        raise DataError(f"{where} must be a list of at least two timesteps")
    roll = np.zeros((len(piece), KEYS), np.bool_)
    for time, notes in enumerate(piece):
        if not isinstance(notes, list):
            raise DataError(f"{where}[{time}] must be a list of MIDI notes; got {type(notes).__name__}")
        for note in notes:
            if note == -1:
                continue
            if isinstance(note, bool) or not isinstance(note, int | float) or note != int(note):
                raise DataError(f"{where}[{time}] has {note!r}; expected a whole MIDI note number")
            if not 0 <= note - LOWEST < KEYS:
                raise DataError(
                    f"{where}[{time}] has MIDI note {note}; expected {LOWEST} to {LOWEST + KEYS - 1}"
                )
            roll[time, int(note) - LOWEST] = True
    return roll
