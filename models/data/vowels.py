"""The data set `vowels`: which of nine speakers says the Japanese vowels /ae/ (Kudo, Toyama and Shimbo 1999).

An utterance is 7 to 29 frames of 12 LPC cepstral coefficients; the speaker is asked for once, at its last frame.
The files are those of the UEA archive, JapaneseVowels_TRAIN.ts and _TEST.ts, inside the PyPI package sktime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamcell.models.errors import DataError

from .packaged import one_hot, packaged_file, source
from .sequences import SequenceData, Series, Standard

PACKAGE = "sktime"
SPEAKERS, COEFFICIENTS = 9, 12
# Of the 30 training utterances of a speaker every sixth is for validation.
VALID_EVERY = 6

# (x float32[frames, 12], speaker 0 to 8)
Utterance = tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], int]


def load_vowels() -> SequenceData:
    """270 utterances for training and validation, 370 for the test, as the authors divided them.

    Raises:
        DataError: sktime is not installed, or its files have changed.
    """
    train, test = (
        read_utterances(
            packaged_file(
                PACKAGE,
                f"sktime/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts",
                wanted_by="the Japanese vowels",
            )
        )
        for part in ("TRAIN", "TEST")
    )
    return vowels_data(train, test)


def vowels_data(train: list[Utterance], test: list[Utterance]) -> SequenceData:
    """Split the training part, each speaker's utterances in their order, and standardise by the remaining ones."""
    seen = [0] * SPEAKERS
    fit: list[Utterance] = []
    valid: list[Utterance] = []
    for utterance in train:
        seen[utterance[1]] += 1
        (fit if seen[utterance[1]] % VALID_EVERY else valid).append(utterance)
    frames = np.concatenate([x for x, _ in fit])
    return SequenceData(
        "vowels",
        train=list(map(_series, fit)),
        valid=list(map(_series, valid)),
        test=list(map(_series, test)),
        distribution="categorical_logits",
        input_standard=Standard(frames.mean(axis=0), frames.std(axis=0)),
        stretchable=True,
        about={
            "source": f"{source(PACKAGE)}, JapaneseVowels",
            "classes": [f"speaker {number}" for number in range(1, SPEAKERS + 1)],
        },
    )


def read_utterances(path: Path) -> list[Utterance]:
    """Read a .ts file: lines of "#" and "@" first, then an utterance a line, its dimensions divided by ":".

    Raises:
        DataError: the file is not of this layout; the text names the line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    utterances = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith(("#", "@")):
            try:
                utterances.append(_utterance(line))
            except ValueError as error:
                raise DataError(f"{path.name}, line {number}: {error}") from error
    if {speaker for _, speaker in utterances} != set(range(SPEAKERS)):
        raise DataError(f"{path.name} does not have utterances of {SPEAKERS} speakers")
    return utterances


def _utterance(line: str) -> Utterance:
    *dimensions, speaker = line.strip().split(":")
    if len(dimensions) != COEFFICIENTS:
        raise ValueError(
            f"expected {COEFFICIENTS} dimensions and a speaker, got {len(dimensions)} dimensions"
        )
    if speaker not in map(str, range(1, SPEAKERS + 1)):
        raise ValueError(f"expected a speaker from 1 to {SPEAKERS}, got {speaker!r}")
    columns = [np.array(dimension.split(","), np.float32) for dimension in dimensions]
    if len({len(column) for column in columns}) != 1:
        raise ValueError("the dimensions are not of one length")
    x = np.stack(columns, axis=1)
    if not np.isfinite(x).all():
        raise ValueError("a value is not finite")
    return x, int(speaker) - 1


def _series(utterance: Utterance) -> Series:
    x, speaker = utterance
    y = np.zeros((len(x), SPEAKERS), np.float32)
    y[-1] = one_hot([speaker], SPEAKERS)[0]
    return Series(x, y)
