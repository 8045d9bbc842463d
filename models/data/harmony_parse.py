"""One score file of the music21 corpus → the scale degree of each quarter's chord. Runs in worker processes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chorales_parse import quarters, read_score


@dataclass(frozen=True)
class Analysed:
    """The result of parsing one file.

    Attributes:
        name: the file's stem.
        key: as music21 names it, "G major" or "e minor"; "" if the file could not be analysed.
        degrees: 1 to 7 for each quarter at which a voice sounds.
        failed: the error that reading or analysing gave, "" if none.
    """

    name: str
    key: str = ""
    degrees: tuple[int, ...] = ()
    failed: str = ""


def analyse_score(path: str) -> Analysed:
    """Read and analyse one score. Any error of the reader becomes `failed`."""
    name = Path(path).stem
    try:
        score, voices = read_score(path)
        if voices is None:
            return Analysed(name, failed="not in four voices")
        key = score.analyze("key")
        return Analysed(name, str(key), tuple(degrees(voices, key)))
    except Exception as error:  # music21's readers raise errors of any type: report it with its type's name
        return Analysed(name, failed=f"{type(error).__name__}: {error}")


def degrees(voices: list[Any], key: Any) -> list[int]:
    """The degree, 1 to 7, of the root of the chord at each quarter, by music21 from pitches as they are spelled.

    A root that is raised or lowered counts for its degree. Quarters without a note are left out, as in the roll.
    """
    from music21 import chord

    sounding: dict[int, list[Any]] = defaultdict(list)
    for voice in voices:
        for note in voice.flatten().notes:
            onset = float(note.offset)
            for quarter in quarters(onset, onset + float(note.quarterLength)):
                sounding[quarter] += note.pitches
    return [
        int(key.getScaleDegreeAndAccidentalFromPitch(chord.Chord(sounding[quarter]).root())[0])
        for quarter in sorted(sounding)
    ]
