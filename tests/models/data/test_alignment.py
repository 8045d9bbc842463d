"""Letters aligned with phonemes: every count and every alignment against all ways written out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from streamcell.models.data.alignment import Aligner, Chunks, Pair

LETTERS, PHONEMES = 4, 3
CHUNKS = Chunks(PHONEMES)


def ways(letters: int, phonemes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every way to cut phonemes into one chunk a letter, as numbers of chunks."""
    if letters == 0:
        if not phonemes:
            yield ()
        return
    for size in range(min(2, len(phonemes)) + 1):
        for rest in ways(letters - 1, phonemes[size:]):
            yield (CHUNKS.number(phonemes[:size]), *rest)


def likely(aligner: Aligner, letters: Sequence[int], way: Sequence[int]) -> float:
    return math.prod(float(aligner.table[letter, chunk]) for letter, chunk in zip(letters, way, strict=True))


def drawn(seed: int, count: int = 40) -> tuple[Aligner, list[Pair]]:
    rng = np.random.default_rng(seed)
    table = rng.random((LETTERS, CHUNKS.count))
    pairs: list[Pair] = [
        (rng.integers(0, LETTERS, rng.integers(1, 5)).tolist(), rng.integers(0, PHONEMES, size).tolist())
        for size in rng.integers(1, 7, count)
    ]
    return Aligner(CHUNKS, table / table.sum(1, keepdims=True)), pairs


def test_a_chunks_number_tells_its_phonemes() -> None:
    every = [CHUNKS.said(number) for number in range(CHUNKS.count)]
    assert len(set(every)) == CHUNKS.count == 1 + 3 + 9
    assert [CHUNKS.number(said) for said in every] == list(range(CHUNKS.count))


@pytest.mark.parametrize("seed", range(3))
def test_counts_and_alignments_are_those_of_all_ways(seed: int) -> None:
    aligner, pairs = drawn(seed)
    counts, total = np.zeros_like(aligner.table), 0.0
    found = aligner.align(pairs)
    assert None in found  # more than two phonemes a letter
    for (letters, phonemes), best in zip(pairs, found, strict=True):
        every = {way: likely(aligner, letters, way) for way in ways(len(letters), phonemes)}
        # Letters that are the same may change places: several ways are the likeliest.
        assert (best is None) == (not every)
        assert best is None or every[best] == pytest.approx(max(every.values()))
        whole = sum(every.values())
        total += math.log(whole) if every else 0.0
        for way, probability in every.items():
            for letter, chunk in zip(letters, way, strict=True):
                counts[letter, chunk] += probability / whole
    given, likelihood = aligner.expect(pairs)
    np.testing.assert_allclose(given, counts, atol=1e-9)
    assert likelihood == pytest.approx(total)


def test_each_round_makes_the_pairs_likelier() -> None:
    aligner, pairs = drawn(7)
    found = []
    for _ in range(5):
        counts, likelihood = aligner.expect(pairs)
        aligner = Aligner(CHUNKS, counts / counts.sum(1, keepdims=True))
        found.append(likelihood)
    assert found == sorted(found)
    assert found[-1] > found[0] + 1


def aligned(words: Sequence[tuple[str, str]], *, common: int = 1) -> list[list[str] | None]:
    """Words with their phonemes, a capital each, aligned by a fit to themselves."""
    letters = sorted({letter for word, _ in words for letter in word})
    phonemes = sorted({phoneme for _, said in words for phoneme in said})
    pairs = [([letters.index(x) for x in word], [phonemes.index(x) for x in said]) for word, said in words]
    aligner = Aligner.fit(pairs, letters=len(letters), phonemes=len(phonemes), common=common)
    return [
        None if way is None else ["".join(phonemes[p] for p in aligner.chunks.said(n)) for n in way]
        for way in aligner.align(pairs)
    ]


WORDS = [("cat", "KAT"), ("tax", "TAKS"), ("cast", "KAST"), ("tact", "TAKT"), ("at", "AT"), ("sat", "SAT")]


def test_a_letter_that_says_two_phonemes_is_found() -> None:
    assert aligned(WORDS)[:3] == [["K", "A", "T"], ["T", "A", "KS"], ["K", "A", "S", "T"]]


def test_of_two_letters_that_say_one_phoneme_the_first_one_says_it() -> None:
    assert aligned([*WORDS, ("att", "AT"), ("tta", "TA")])[-2:] == [["A", "T", ""], ["T", "", "A"]]


def test_a_rare_chunk_is_left_out_and_what_needs_it_has_no_alignment() -> None:
    assert aligned(WORDS, common=2)[1] is None
    assert aligned([*WORDS, ("ax", "AKS")], common=2)[1] == ["T", "A", "KS"]
