"""Beam search over classes, as bookkeeping alone: log-probabilities in, which hypotheses live on out. Plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sequence of classes, as its last class and the hypothesis that it grew from."""

    parent: Hypothesis | None
    last: int
    length: int
    log_probability: float
    # Whether its last class is a stop class.
    stopped: bool = False

    def classes(self) -> list[int]:
        """All of them, first to last."""
        classes = []
        each: Hypothesis | None = self
        while each is not None and each.parent is not None:
            classes.append(each.last)
            each = each.parent
        return classes[::-1]


class BeamSearch:
    """Keeps the `width` likeliest hypotheses and those that have ended.

    At each step every live hypothesis grows by every class. Of what comes of it, the `width` likeliest that do not end
    with a stop class live on; those that do, and are among the `width` likeliest of all, have ended. A score is the
    log-probability over the length (stop class included) to the power `length_power`. The search is done after `steps`
    classes, or once `results` have ended whose scores no live hypothesis has at its present length.
    """

    def __init__(
        self, *, width: int, results: int, steps: int, length_power: float, stop: frozenset[int]
    ) -> None:
        self.width = width
        self.live = [Hypothesis(None, -1, 0, 0.0)]
        # An output held a NaN or an infinity: what would have grown from it did not.
        self.non_finite = False
        self._results = results
        self._steps = steps
        self._power = length_power
        self._stop = stop
        self._ended: list[Hypothesis] = []
        self._length = 0

    def grow(self, logits: npt.NDArray[Any]) -> list[int]:
        """Grow the live hypotheses by a class: float[live, classes] → for each that lives now, which it grew from."""
        total = self._log_softmax(logits.astype(np.float64))
        total += np.array([each.log_probability for each in self.live])[:, None]
        classes = total.shape[1]
        flat = total.ravel()
        most = min(flat.size, self.width * (1 + len(self._stop)))
        top = np.argpartition(-flat, most - 1)[:most]
        top = top[np.lexsort((top, -flat[top]))]
        self._length += 1
        live: list[Hypothesis] = []
        parents: list[int] = []
        for rank, place in enumerate(top.tolist()):
            if flat[place] == -np.inf or len(live) == self.width:
                break
            parent, last = divmod(place, classes)
            stopped = last in self._stop
            grown = Hypothesis(self.live[parent], last, self._length, float(flat[place]), stopped)
            if not stopped:
                live.append(grown)
                parents.append(parent)
            elif rank < self.width:
                self._ended.append(grown)
        self.live = live
        if self._length == self._steps:
            self._ended += live
            self.live = []
        self._ended = sorted(self._ended, key=self.score, reverse=True)[: self._results]
        return parents if self.live else []

    def _log_softmax(self, y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        fine = ~(np.isnan(y) | (y == np.inf)).any(axis=1) & np.isfinite(y).any(axis=1)
        self.non_finite = self.non_finite or not fine.all()
        y = np.where(fine[:, None], y, 0.0)
        y -= y.max(axis=1, keepdims=True)
        y -= np.log(np.exp(y).sum(axis=1, keepdims=True))
        return np.where(fine[:, None], y, -np.inf)

    def score(self, hypothesis: Hypothesis) -> float:
        """The length-normalised log-probability."""
        return hypothesis.log_probability / float(hypothesis.length**self._power)

    @property
    def done(self) -> bool:
        """Whether it is over."""
        if not self.live:
            return True
        full = len(self._ended) >= self._results
        return full and self.score(self.live[0]) <= self.score(self._ended[-1])

    def best(self) -> Sequence[Hypothesis]:
        """The best first: those that have ended, and, where they are too few, the live ones."""
        ended = self._ended
        if len(ended) < self._results:
            grown = [each for each in self.live if each.length]
            ended = ended + sorted(grown, key=self.score, reverse=True)
        return ended[: self._results]
