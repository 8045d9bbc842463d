"""The data set `harmony`: the degree of the key on which the chord of each quarter stands, in Bach's chorales.

x is the piano roll that `chorales` has, y the degree I to VII at the same quarter. The key is nowhere in x: the same
chord is I in one piece and IV in another, so a model has to remember what it has heard.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamcell.models.errors import DataError

from . import cache
from .chorales import Chorales, corpus_files, load_chorales
from .harmony_parse import analyse_score
from .packaged import one_hot
from .parallel import OnParsed, in_parallel
from .sequences import SequenceData, Series
from .splits import SPLITS

CACHE_NAME = "harmony.npz"
FORMAT = "streamcell.degrees/1"
DEGREES = ("I", "II", "III", "IV", "V", "VI", "VII")

_log = logging.getLogger(__name__)
# Piece → uint8[time], degrees from 1.
Degrees = Mapping[str, NDArray[np.uint8]]


def load_harmony(folder: Path = Path("data"), on_parsed: OnParsed | None = None) -> SequenceData:
    """The chorales and their degrees, from the caches in `folder` or parsed and analysed and cached.

    Raises:
        DataError: music21 is missing, or its corpus cannot be read.
    """
    return harmony_data(load_chorales(folder, on_parsed), load_degrees(folder, on_parsed))


def load_degrees(
    folder: Path, on_parsed: OnParsed | None = None, *, files: Sequence[Path] | None = None
) -> Degrees:
    """The degrees of every piece that music21 can analyse; a damaged cache is reported and made again.

    `files` are the scores to analyse; None: Bach's of music21's corpus.

    Raises:
        DataError: music21 is missing, or no file could be analysed.
    """
    path = folder / CACHE_NAME
    if path.exists():
        try:
            arrays = cache.read_arrays(path, FORMAT)
            parts = np.split(arrays["degrees"], np.cumsum(arrays["lengths"])[:-1])
            return dict(zip(map(str, arrays["names"]), parts, strict=True))
        except DataError as error:
            _log.warning("%s; analysing the corpus again", error)
    degrees: dict[str, NDArray[np.uint8]] = {}
    for item in in_parallel(analyse_score, corpus_files() if files is None else files, on_parsed):
        # The corpus has three pieces in two files; `chorales` keeps the first too.
        if item.degrees and item.name not in degrees:
            degrees[item.name] = np.array(item.degrees, np.uint8)
    if not degrees:
        raise DataError("harmony: none of the scores could be analysed")
    cache.write_arrays(
        path,
        FORMAT,
        names=np.array(list(degrees)),
        lengths=np.array([len(part) for part in degrees.values()], np.int64),
        degrees=np.concatenate(list(degrees.values())),
    )
    return degrees


def harmony_data(chorales: Chorales, degrees: Degrees) -> SequenceData:
    """The pieces that have both, split as the chorales are.

    Raises:
        DataError: a piece's degrees are not as many as its timesteps, or a part is left without a piece.
    """
    parts: dict[str, list[Series]] = {}
    for part in SPLITS:
        pieces = [(name, roll) for name, roll in chorales.split(part) if name in degrees]
        for name, roll in pieces:
            if len(roll) != len(degrees[name]):
                raise DataError(f"{name} has {len(roll)} timesteps and {len(degrees[name])} degrees")
        if not pieces:
            raise DataError(f"harmony: the {part} part has no piece")
        parts[part] = [
            Series(roll.astype(np.float32), one_hot((degrees[name] - 1).tolist(), len(DEGREES)))
            for name, roll in pieces
        ]
    return SequenceData(
        "harmony",
        train=parts["train"],
        valid=parts["valid"],
        test=parts["test"],
        distribution="categorical_logits",
        transposable=True,
        about={
            "source": f"{chorales.report.get('source', 'scores')}; keys and roots by music21",
            "classes": list(DEGREES),
            "left_out": sorted(name for name in chorales.names if name not in degrees),
        },
    )
