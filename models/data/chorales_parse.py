"""One score file of the music21 corpus → a piano roll on the quarter-note grid. Runs in worker processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .piano import KEYS, LOWEST

VOICES = ("soprano", "alto", "tenor", "bass")
# Offsets are quarter notes; triplets are stored as floats that miss their fraction by less than this.
EPSILON = 1e-4


@dataclass(frozen=True)
class Parsed:
    """The result of parsing one file: a roll, or the reason why it is not in the data set.

    Attributes:
        name: the file's stem, "bwv10.7".
        roll: bool[time, 88], or None.
        skipped: why a readable score is no chorale, "" if it is one.
        failed: the error that reading it gave, "" if none.
    """

    name: str
    roll: NDArray[np.bool_] | None = None
    skipped: str = ""
    failed: str = ""


def parse_score(path: str) -> Parsed:
    """Read one score. Any error of the reader becomes `failed`: one bad file must not cost the others."""
    name = Path(path).stem
    try:
        _, voices = read_score(path)
        if voices is None:
            return Parsed(name, skipped="not in four voices")
        roll = piano_roll([sounding(voice) for voice in voices])
    except Exception as error:  # music21's readers raise errors of any type: report it with its type's name
        return Parsed(name, failed=f"{type(error).__name__}: {error}")
    return Parsed(name, roll) if len(roll) > 1 else Parsed(name, skipped="fewer than two timesteps")


def read_score(path: str) -> tuple[Any, list[Any] | None]:
    """A file's music21 score and its four voices, None if it is not in four voices.

    music21 raises errors of many types on a file that it cannot read.
    """
    from music21 import converter

    # forceSource: neither read nor write music21's pickled copies of parsed scores.
    score = converter.parseFile(path, forceSource=True)
    return score, four_voices(list(score.parts))


def four_voices(parts: list[Any]) -> list[Any] | None:
    """The parts of a four-part score; of a larger one soprano, alto, tenor and bass; else None."""
    if len(parts) == len(VOICES):
        return parts
    named = {voice: [p for p in parts if _part_name(p).startswith(voice)] for voice in VOICES}
    if any(len(found) != 1 for found in named.values()):
        return None
    return [found[0] for found in named.values()]


def _part_name(part: Any) -> str:
    return str(part.partName or "").lower()


def sounding(part: Any) -> list[tuple[float, float, int]]:
    """(onset, end, MIDI pitch) of every note of a part, in quarter notes from the start of the piece."""
    notes = []
    for element in part.flatten().notes:
        onset = float(element.offset)
        end = onset + float(element.quarterLength)
        notes += [(onset, end, int(pitch.midi)) for pitch in element.pitches]
    return notes


def quarters(onset: float, end: float) -> range:
    """The quarters at which a note sounds: those from its onset to before its end."""
    return range(math.ceil(onset - EPSILON), math.ceil(end - EPSILON))


def piano_roll(voices: list[list[tuple[float, float, int]]]) -> NDArray[np.bool_]:
    """bool[time, 88]: the keys that sound at each quarter note; quarters without any are left out.

    Raises:
        ValueError: a pitch is not on the piano.
    """
    notes = [note for voice in voices for note in voice]
    last = math.ceil(max((end for _, end, _ in notes), default=0.0))
    roll = np.zeros((last, KEYS), np.bool_)
    for onset, end, pitch in notes:
        if not 0 <= pitch - LOWEST < KEYS:
            raise ValueError(f"MIDI pitch {pitch} is not on a piano of {KEYS} keys")
        roll[quarters(onset, end), pitch - LOWEST] = True
    return roll[roll.any(axis=1)]
