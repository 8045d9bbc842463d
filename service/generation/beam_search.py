"""Beam search over classes, in plain numpy: takes log-probabilities, says which hypotheses stay live. Runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sequence of classes: its last class, and the hypothesis that it extends."""

    parent: Hypothesis | None
    last: int
    length: int
    log_probability: float
    # Whether its last class is a stop class.
    stopped: bool = False

    def classes(self) -> list[int]:
        """All classes, first to last."""
        classes = []
        each: Hypothesis | None = self
        while each is not None and each.parent is not None:
            classes.append(each.last)
            each = each.parent
        return classes[::-1]


class BeamSearch:
    """Keeps the `width` likeliest live hypotheses, and the ended ones.

    At each step every live hypothesis is extended by every class. Of the results, the `width` likeliest that do not end
    with a stop class stay live. Those that do, and are among the `width` likeliest of all, have ended. A score is the
    log-probability over the length (stop class included) to the power `length_power`. The search is done after `steps`
    classes, or once `results` have ended with scores above every live hypothesis' score at its present length.
    """

    def __init__(
        self, *, width: int, results: int, steps: int, length_power: float, stop: frozenset[int]
    ) -> None:
        self.width = width
        self.live = [Hypothesis(None, -1, 0, 0.0)]
        # An output held a NaN or an infinity, so its hypothesis was not extended.
        self.non_finite = False
        self._results = results
        self._steps = steps
        self._power = length_power
        self._stop = stop
        self._ended: list[Hypothesis] = []
        self._length = 0

    def grow(self, logits: npt.NDArray[Any]) -> list[int]:
        """Extend the live hypotheses by a class: float[live, classes] → the parent of each one that is live now."""
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
        """True if the search is done."""
        if not self.live:
            return True
        full = len(self._ended) >= self._results
        return full and self.score(self.live[0]) <= self.score(self._ended[-1])

    def best(self) -> Sequence[Hypothesis]:
        """The best first: ended hypotheses, then live ones if those are too few."""
        ended = self._ended
        if len(ended) < self._results:
            grown = [each for each in self.live if each.length]
            ended = ended + sorted(grown, key=self.score, reverse=True)
        return ended[: self._results]
