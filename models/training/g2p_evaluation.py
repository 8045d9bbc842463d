"""A model's pronunciations of words, and its phoneme and word error rates as the literature counts them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.architectures.seq2seq import Seq2Seq
from streamcell.models.architectures.seq2seq_decode import greedy
from streamcell.models.data.g2p import Pronunciation, Symbols
from streamcell.models.data.sequences import SequenceData
from streamcell.models.errors import ConfigError

# The most phonemes of an answer; the dictionary's longest pronunciation has 28.
LIMIT = 40


@dataclass(frozen=True)
class Errors:
    """The error counts of a set of words.

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
    """Count the errors over pairs of (a pronunciation, the word's references).

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


def pronounce(model: Seq2Seq, symbols: Symbols, words: Sequence[str]) -> list[Pronunciation]:
    """The model's pronunciations of words, with the most likely phoneme at each step.

    Raises:
        DataError: a word has a character that the table has not.
    """
    answers = greedy(model, [symbols.spell(word) for word in words], limit=LIMIT)
    return [symbols.pronunciation(answer) for answer in answers]


def error_rates(model: Seq2Seq, symbols: Symbols, words: Mapping[str, Sequence[Pronunciation]]) -> Errors:
    """Phoneme and word errors of arg-max decoding over words with their references."""
    said = pronounce(model, symbols, list(words))
    return count_errors(zip(said, words.values(), strict=True))


def phoneme_errors(model: SequenceModel, data: SequenceData, split: str) -> dict[str, float]:
    """Phoneme and word error rate of arg-max decoding over the words of a part.

    Raises:
        ConfigError: the model is no encoder–decoder.
    """
    if not isinstance(model, Seq2Seq):
        raise ConfigError(
            f"phoneme errors need a model of kind {Seq2Seq.kind}; this one is of kind {model.kind}"
        )
    errors = error_rates(model, Symbols.of(data.about), data.words[split])
    return {"phoneme_error_rate": errors.per, "word_error_rate": errors.wer}
