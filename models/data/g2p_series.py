"""Words and pronunciations as training sequences, and what a model says of words, with its error rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.architectures.seq2seq import Seq2Seq
from streamcell.models.architectures.seq2seq_decode import greedy
from streamcell.models.training.g2p_metrics import Errors, count_errors

from .g2p import LETTERS, Dictionary, Pronunciation, Symbols
from .sequences import SPLITS, SequenceData, Series

# The most phonemes of an answer; the dictionary's longest pronunciation has 28.
LIMIT = 40


def g2p_data(dictionary: Dictionary, symbols: Symbols) -> SequenceData:
    """Teacher forcing: x is a word's letters, the boundary and its phonemes, y each next phoneme and the boundary.

    Every pronunciation of a word is a sequence of its own. At letters nothing is asked. Sequences of as many
    letters form a group, so that a batch's encoders end together.
    """
    parts = {
        split: [
            _series(symbols.spell(word), symbols.classes_of(said))
            for word, pronunciations in dictionary.part(split).items()
            for said in pronunciations
        ]
        for split in SPLITS
    }
    return SequenceData(
        "g2p",
        train=parts["train"],
        valid=parts["valid"],
        test=parts["test"],
        distribution="categorical_logits",
        tokens=symbols.tokens,
        classes=symbols.classes,
        # Training on, the loss rises when errors still fall: the model grows surer of the few it makes.
        judged_by="accuracy",
        about={
            **dictionary.about,
            "words_by_part": {split: len(dictionary.part(split)) for split in SPLITS},
            **symbols.about,
        },
        measure=partial(_measure, dictionary, symbols),
    )


def _measure(dictionary: Dictionary, symbols: Symbols, model: SequenceModel, split: str) -> dict[str, float]:
    assert isinstance(model, Seq2Seq)  # `make_model` lets no other near tokens
    errors = error_rates(model, symbols, dictionary.part(split))
    return {"phoneme_error_rate": errors.per, "word_error_rate": errors.wer}


def _series(letters: Sequence[int], classes: Sequence[int]) -> Series:
    go = len(LETTERS)
    x = np.array([*letters, go, *(go + number for number in classes)], np.int64)
    y = np.array([-1] * len(letters) + [*classes, 0], np.int64)
    return Series(x, y, group=len(letters))


def pronounce(model: Seq2Seq, symbols: Symbols, words: Sequence[str]) -> list[Pronunciation]:
    """What the model says of words, the most likely phoneme at each step.

    Raises:
        DataError: a word has a character that the table has not.
    """
    answers = greedy(model, [symbols.spell(word) for word in words], limit=LIMIT)
    return [symbols.pronunciation(answer) for answer in answers]


def error_rates(model: Seq2Seq, symbols: Symbols, words: Mapping[str, Sequence[Pronunciation]]) -> Errors:
    """Phoneme and word errors of arg-max decoding over words with their references."""
    said = pronounce(model, symbols, list(words))
    return count_errors(zip(said, words.values(), strict=True))
