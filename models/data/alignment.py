"""Letters aligned with phonemes: each letter says no phoneme, one, or two in a row.

The model of Jiampojamarn et al. (2007), *Applying many-to-many alignments and hidden Markov models to letter-to-phoneme
conversion*, with one letter on the left side of a link: a word's probability is the sum over all ways to cut its
phonemes into one chunk a letter, of the product of P(chunk | letter). Expectation-maximisation fits P; the likeliest
way is the alignment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pair = tuple[Sequence[int], Sequence[int]]

# The most phonemes of a chunk.
LONGEST = 2
# What the first round takes for likely: most letters say one phoneme.
FIRST = (0.1, 1.0, 0.01)
ROUNDS = 8
# A chunk of two is kept if so many letters of the training part say it.
COMMON = 15
# P of a kept chunk at a letter that never said it: an unusual word is aligned as well.
FLOOR = 1e-8
# Two ways are as likely as each other if they differ by no more than rounding does.
TIE = 1e-9


@dataclass(frozen=True)
class Chunks:
    """The numbers of chunks: 0 is silence, then each phoneme alone, then each pair of phonemes."""

    phonemes: int

    @property
    def count(self) -> int:
        """Of all chunks."""
        return 1 + self.phonemes + self.phonemes**2

    def number(self, said: Sequence[int]) -> int:
        """The number of a chunk of up to two phonemes."""
        if not said:
            return 0
        if len(said) == 1:
            return 1 + said[0]
        first, second = said
        return 1 + self.phonemes + self.phonemes * first + second

    def said(self, number: int) -> tuple[int, ...]:
        """The phonemes of a chunk."""
        if number == 0:
            return ()
        if number <= self.phonemes:
            return (number - 1,)
        return divmod(number - 1 - self.phonemes, self.phonemes)


@dataclass(frozen=True)
class Aligner:
    """P(chunk | letter).

    Attributes:
        chunks: the numbers of chunks.
        table: float64[letters, chunks]; after `fit` zero at the chunks that were left out.
    """

    chunks: Chunks
    table: Floats

    @classmethod
    def fit(
        cls, pairs: Sequence[Pair], *, letters: int, phonemes: int, rounds: int = ROUNDS, common: int = COMMON
    ) -> Aligner:
        """Fit to pairs of letters and phonemes, and leave out the rare chunks of two.

        Pairs that have no alignment, with more than two phonemes a letter, count nothing.

        Args:
            letters, phonemes: how many of each there are.
            rounds: of expectation-maximisation.
            common: how many letters must say a chunk of two in the alignments of `pairs`.
        """
        chunks = Chunks(phonemes)
        aligner = cls(chunks, np.repeat(FIRST, (1, phonemes, phonemes**2))[None].repeat(letters, 0))
        for _ in range(rounds):
            counts, _ = aligner.expect(pairs)
            aligner = cls(chunks, counts / np.maximum(counts.sum(1, keepdims=True), 1e-300))
        said = [number for found in aligner.align(pairs) if found is not None for number in found]
        kept = np.bincount(said, minlength=chunks.count) >= common
        kept[: 1 + phonemes] = True
        return cls(chunks, np.where(kept, np.maximum(aligner.table, FLOOR), 0.0))

    def expect(self, pairs: Sequence[Pair]) -> tuple[Floats, float]:
        """How often each letter says each chunk, expected over all ways, and the log-probability of `pairs`."""
        counts = np.zeros(self.table.size)
        total = 0.0
        for _, letters, phonemes in _by_shape(pairs):
            links = _Links(self, letters, phonemes)
            forward, backward = links.forward(), links.backward()
            whole = forward[-1][:, -1]
            possible = whole > 0
            total += float(np.log(whole[possible]).sum())
            scale = np.divide(1.0, whole, out=np.zeros_like(whole), where=possible)[:, None]
            for at in range(letters.shape[1]):
                for size in links.sizes:
                    reached = forward[at][:, : links.ends[size]] * links.likely(at, size)
                    weights = reached * backward[at + 1][:, size:] * scale
                    where = links.places(at, size)
                    counts += np.bincount(where.ravel(), weights.ravel(), minlength=counts.size)
        return counts.reshape(self.table.shape), total

    def align(self, pairs: Sequence[Pair]) -> list[tuple[int, ...] | None]:
        """The likeliest chunk of each letter, by number; None for a pair that has no alignment.

        Of two ways that are as likely the one whose early letters say more is taken.
        """
        found: list[tuple[int, ...] | None] = [None] * len(pairs)
        for rows, letters, phonemes in _by_shape(pairs):
            links = _Links(self, letters, phonemes)
            possible, said = links.best()
            for row, place in enumerate(rows):
                if possible[row]:
                    found[place] = tuple(said[row].tolist())
        return found


def _by_shape(pairs: Sequence[Pair]) -> Iterator[tuple[list[int], Ints, Ints]]:
    """Pairs of one shape: their places in `pairs`, int64[rows, letters] and int64[rows, phonemes]."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, (letters, phonemes) in enumerate(pairs):
        groups.setdefault((len(letters), len(phonemes)), []).append(place)
    for _, rows in sorted(groups.items()):
        yield (
            rows,
            np.array([pairs[row][0] for row in rows], np.int64),
            np.array([pairs[row][1] for row in rows], np.int64),
        )


class _Links:
    """All links of pairs of one shape: letter number `at` says the `size` phonemes from each place on.

    Every array is [rows, places], a place being how many phonemes the letters before have said.
    """

    def __init__(self, aligner: Aligner, letters: Ints, phonemes: Ints) -> None:
        count = phonemes.shape[1]
        self.sizes = range(min(LONGEST, count) + 1)
        # How many places a chunk of each size can begin at.
        self.ends = [count + 1 - size for size in self.sizes]
        base = aligner.chunks.phonemes
        self._numbers = [
            np.zeros((len(phonemes), count + 1), np.int64),
            1 + phonemes,
            1 + base + base * phonemes[:, :-1] + phonemes[:, 1:],
        ]
        self._rows: Ints = aligner.table.shape[1] * letters
        self._flat = aligner.table.ravel()
        self._shape = (len(phonemes), count + 1)

    def places(self, at: int, size: int) -> Ints:
        """The places of the links' probabilities in the flat table."""
        found: Ints = self._rows[:, at, None] + self._numbers[size]
        return found

    def likely(self, at: int, size: int) -> Floats:
        """The links' probabilities."""
        return self._flat[self.places(at, size)]

    def forward(self) -> list[Floats]:
        """The probability that the first letters say the first phonemes, before each letter and at the end."""
        now = np.zeros(self._shape)
        now[:, 0] = 1.0
        found = [now]
        for at in range(self._rows.shape[1]):
            after = np.zeros(self._shape)
            for size in self.sizes:
                after[:, size:] += now[:, : self.ends[size]] * self.likely(at, size)
            found.append(now := after)
        return found

    def backward(self) -> list[Floats]:
        """The probability that the letters from each on say the remaining phonemes."""
        after = np.zeros(self._shape)
        after[:, -1] = 1.0
        found = [after]
        for at in reversed(range(self._rows.shape[1])):
            now = np.zeros(self._shape)
            for size in self.sizes:
                now[:, : self.ends[size]] += self.likely(at, size) * after[:, size:]
            found.append(after := now)
        return found[::-1]

    def best(self) -> tuple[NDArray[np.bool_], Ints]:
        """Whether each row can be aligned, and the numbers of its likeliest chunks, int64[rows, letters] (Viterbi)."""
        now = np.zeros(self._shape)
        now[:, 0] = 1.0
        took: list[Ints] = []
        for at in range(self._rows.shape[1]):
            after, size_of = np.zeros(self._shape), np.zeros(self._shape, np.int64)
            for size in self.sizes:
                way = now[:, : self.ends[size]] * self.likely(at, size)
                better = way > after[:, size:] * (1 + TIE)
                after[:, size:] = np.where(better, way, after[:, size:])
                size_of[:, size:] = np.where(better, size, size_of[:, size:])
            took.append(size_of)
            now = after
        rows = np.arange(self._shape[0])
        place = np.full(self._shape[0], self._shape[1] - 1)
        said = np.zeros(self._rows.shape, np.int64)
        for at in reversed(range(self._rows.shape[1])):
            size = took[at][rows, place]
            place = place - size
            for each in self.sizes:
                chosen = size == each
                said[chosen, at] = self._numbers[each][rows[chosen], place[chosen]]
        return now[:, -1] > 0, said
