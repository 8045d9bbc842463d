"""Training batches: pieces of like length side by side, cut into windows; and rows of one long series."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamcell.models.data.sequences import SequenceData, Series

from .augmentation import Augmentation
from .losses import counted

# Batches are formed of pieces sorted by length within pools of this many batches: little padding, and still shuffled.
POOL = 6
AS_THEY_ARE = Augmentation()


@dataclass(frozen=True)
class Batch:
    """Sequences side by side, the longest first.

    Attributes:
        x: float32[batch, time, input_size], zero beyond a row's length; or tokens int64[batch, time].
        y: float32[batch, time, output_size], likewise; or classes int64[batch, time], −1 if there is no target.
        lengths: int64[batch], descending, all at least 1.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor

    def counted(self, distribution: str) -> int:
        """How many timesteps a loss of this distribution counts."""
        return int(counted(self.y, self.lengths, distribution).sum())

    def windows(self, size: int) -> Iterator[Batch]:
        """The batch in stretches of `size` timesteps, each without the rows that have ended before it."""
        for start in range(0, self.x.shape[1], size):
            rows = int((self.lengths > start).sum())
            stretch = slice(start, start + size)
            yield Batch(
                self.x[:rows, stretch], self.y[:rows, stretch], (self.lengths[:rows] - start).clamp(max=size)
            )

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(self.x.to(device), self.y.to(device), self.lengths.to(device))


def collate(series: Sequence[Series]) -> Batch:
    """Pad sequences to the longest of them."""
    ordered = sorted(series, key=len, reverse=True)
    x, y = (
        torch.nn.utils.rnn.pad_sequence([torch.from_numpy(item) for item in items], batch_first=True)
        for items in ([s.x for s in ordered], [s.y for s in ordered])
    )
    for row, one in enumerate(ordered):
        if not x.is_floating_point():
            # A valid token: an encoder–decoder's row does not return to the encoder.
            x[row, len(one) :] = int(one.x[-1])
        if not y.is_floating_point():
            y[row, len(one) :] = -1
    return Batch(x, y, torch.tensor([len(s) for s in ordered]))


def in_order(series: Sequence[Series], batch_size: int) -> Iterator[Batch]:
    """All sequences, by group and length, for evaluation; a batch is of one group."""
    for rows in _pools(sorted(series, key=len, reverse=True), batch_size):
        yield collate(rows)


def _pools(series: Sequence[Series], size: int) -> Iterator[list[Series]]:
    """`size` sequences of one group at a time, in their order within it."""
    by_group = sorted(series, key=lambda one: one.group)
    for _, group in itertools.groupby(by_group, key=lambda one: one.group):
        rows = list(group)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def shuffled(
    data: SequenceData,
    *,
    batch_size: int,
    window: int,
    rng: np.random.Generator,
    augmentation: Augmentation = AS_THEY_ARE,
) -> list[Batch]:
    """One epoch of the training part.

    A continuous series is cut into up to `batch_size` rows of one length, from a start drawn again each time.
    Pieces are shuffled, and changed by `augmentation`.
    """
    if data.continuous:
        return [_rows(data.train[0], batch_size, window, rng)]
    pieces = [data.train[index] for index in rng.permutation(len(data.train))]
    pieces = [augmentation.of(piece, data, rng) for piece in pieces]
    batches: list[Batch] = []
    for pool in _pools(pieces, batch_size * POOL):
        batches += in_order(pool, batch_size)
    return [batches[index] for index in rng.permutation(len(batches))]


def _rows(series: Series, batch_size: int, window: int, rng: np.random.Generator) -> Batch:
    rows = max(1, min(batch_size, len(series) // (2 * window)))
    start = int(rng.integers(min(window, len(series) // 2) + 1))
    length = (len(series) - start) // rows
    starts = [start + row * length for row in range(rows)]
    return collate([Series(series.x[at : at + length], series.y[at : at + length]) for at in starts])
