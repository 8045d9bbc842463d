"""The data set `chorales`: Bach's four-part chorales of music21's corpus, on a quarter-note grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from streamcell.models.errors import DataError

from . import cache
from .chorales_parse import Parsed, parse_score
from .parallel import OnParsed, in_parallel
from .piano import Roll, versions
from .sequences import SequenceData, Series
from .splits import SPLITS, split_of

CACHE_NAME = "chorales.npz"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chorales:
    """The pieces, in the order of their names, and those left out.

    Attributes:
        names: of each piece, the file's stem in the corpus.
        rolls: bool[time, 88] each.
        report: music21's version, the files read, those that failed or were left out, by name.
    """

    names: Sequence[str]
    rolls: Sequence[Roll]
    report: dict[str, Any] = field(default_factory=dict)

    def split(self, part: str) -> list[tuple[str, Roll]]:
        """The pieces of "train", "valid" or "test"."""
        pieces = zip(self.names, self.rolls, strict=True)
        return [(name, roll) for name, roll in pieces if part_of(name) == part]


def part_of(piece: str) -> str:
    """The part that a piece belongs to: about 70 % train, 10 % valid, 20 % test."""
    return split_of(piece, test=0.2, valid=0.1)


def load_chorales(
    folder: Path = Path("data"), on_parsed: OnParsed | None = None, *, files: Sequence[Path] | None = None
) -> Chorales:
    """The chorales from the cache in `folder`, or parsed from music21's corpus (on all cores) and cached.

    A cache that fails its checksum is reported in the log and made again. `files` are the scores to parse;
    None: Bach's of music21's corpus.

    Raises:
        DataError: music21 is missing, or no file of its corpus could be read.
    """
    path = folder / CACHE_NAME
    if path.exists():
        try:
            return Chorales(*cache.read_rolls(path))
        except DataError as error:
            _log.warning("%s; parsing the corpus again", error)
    chorales = collect(parse_files(corpus_files() if files is None else files, on_parsed))
    cache.write_rolls(path, chorales.names, chorales.rolls, chorales.report)
    return chorales


def chorales_data(chorales: Chorales) -> SequenceData:
    """Next-step prediction: x is a piece without its last timestep, y the same piece without its first."""
    parts = {part: chorales.split(part) for part in SPLITS}
    about = {
        **chorales.report,
        "names": {part: [name for name, _ in parts[part]] for part in ("valid", "test")},
    }
    return piano_data("chorales", {part: [roll for _, roll in parts[part]] for part in parts}, about)


def piano_data(name: str, parts: dict[str, list[Roll]], about: dict[str, Any]) -> SequenceData:
    """A data set of piano rolls bool[time, 88], each of at least two timesteps, by split.

    Raises:
        DataError: a part has no piece.
    """
    for part, rolls in parts.items():
        if not rolls:
            raise DataError(f"{name}: the {part} part has no piece")
    return SequenceData(
        name,
        train=[_next_step(roll) for roll in parts["train"]],
        valid=[_next_step(roll) for roll in parts["valid"]],
        test=[_next_step(roll) for roll in parts["test"]],
        distribution="bernoulli_logits",
        transposable=True,
        about=about,
    )


def _next_step(roll: Roll) -> Series:
    keys = roll.astype(np.float32)
    return Series(keys[:-1], keys[1:])


def collect(parsed: Sequence[Parsed]) -> Chorales:
    """The chorales among parsed files. The report names the files left out, with reasons.

    Raises:
        DataError: nothing is left.
    """
    failed = {item.name: item.failed for item in parsed if item.failed}
    skipped = {item.name: item.skipped for item in parsed if item.skipped}
    kept = sorted(((p.name, p.roll) for p in parsed if p.roll is not None), key=lambda piece: piece[0])
    if not kept:
        raise DataError(
            f"none of {len(parsed)} files is a usable chorale; failed: {failed}; left out: {skipped}"
        )
    first = versions([roll for _, roll in kept])
    double = [(name, kept[of][0]) for (name, _), of in zip(kept, first, strict=True) if of is not None]
    kept = [piece for piece, of in zip(kept, first, strict=True) if of is None]
    report = {
        "source": f"music21 {version('music21')} corpus, bach",
        "files": len(parsed),
        "pieces": len(kept),
        "failed": failed,
        "left_out": skipped,
        "versions_of_another": [list(pair) for pair in double],
    }
    return Chorales([name for name, _ in kept], [roll for _, roll in kept], report)


def corpus_files() -> list[Path]:
    """Bach's scores in music21's corpus, in the order of their names.

    Raises:
        DataError: music21 is not installed.
    """
    try:
        from music21 import corpus
    except ImportError as error:
        raise DataError("the chorales need the package music21: pip install 'streamcell[train]'") from error
    # .rntxt files are harmonic analyses of chorales that the corpus also has as scores.
    return sorted(Path(path) for path in corpus.getComposer("bach") if Path(path).suffix != ".rntxt")


def parse_files(files: Sequence[Path], on_parsed: OnParsed | None = None) -> list[Parsed]:
    """Parse scores in one process a core; a file that cannot be read comes back as such."""
    return in_parallel(parse_score, files, on_parsed)
