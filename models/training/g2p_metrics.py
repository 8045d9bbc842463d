"""Phoneme and word error rates, as the literature on grapheme-to-phoneme conversion counts them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Errors:
    """What a set of words came to.

    Attributes:
        words: that were pronounced.
        wrong: of them, those that are none of their word's references.
        edits: phonemes put in, left out or taken for others, against each word's nearest reference.
        phonemes: of those references.
    """

    words: int
    wrong: int
    edits: int
    phonemes: int

    @property
    def wer(self) -> float:
        """Word error rate, a share."""
        return self.wrong / self.words

    @property
    def per(self) -> float:
        """Phoneme error rate: edits a phoneme of the references."""
        return self.edits / self.phonemes

    def __str__(self) -> str:
        return f"PER {self.per:.2%}, WER {self.wer:.2%} on {self.words} words"


def count_errors(
    pairs: Iterable[tuple[Sequence[Hashable], Sequence[Sequence[Hashable]]]],
) -> Errors:
    """Count over (what was said, the word's references).

    Of several references the nearest counts, that is the one with the fewest edits for its length.

    Raises:
        ValueError: a word has no reference, or an empty one.
    """
    words = wrong = edits = phonemes = 0
    for said, references in pairs:
        if not references or not all(references):
            raise ValueError("every word needs a reference of at least one phoneme")
        distance, length = min(
            ((edit_distance(said, reference), len(reference)) for reference in references),
            key=lambda found: found[0] / found[1],
        )
        words += 1
        wrong += distance > 0
        edits += distance
        phonemes += length
    return Errors(words, wrong, edits, phonemes)


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein (1966): the fewest insertions, deletions and substitutions that make b of a."""
    above = list(range(len(b) + 1))
    for row, symbol in enumerate(a, start=1):
        line = [row]
        for column, other in enumerate(b, start=1):
            line.append(min(above[column] + 1, line[column - 1] + 1, above[column - 1] + (symbol != other)))
        above = line
    return above[-1]
