"""Figures by case and server, a set a round, and the medians and ratios that count."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from streamcell.benchmarks.cases import OURS


@dataclass
class Results:
    """Figures by case and server, one entry a round."""

    rounds: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.rounds)

    def add(self, case: str, server: str, figures: dict[str, float]) -> None:
        """Add one round's."""
        self.rounds.setdefault((case, server), []).append(figures)

    def median(self, case: str, server: str, figure: str) -> float | None:
        """The median of the rounds; None if it was not measured."""
        values = [r[figure] for r in self.rounds.get((case, server), ()) if figure in r]
        return _median(values)

    def ratio(self, case: str, figure: str, to: str, *, server: str = OURS) -> float | None:
        """`server`'s figure over that of `to`, the median of the ratios of each round."""
        return _median(self.ratios(case, figure, to, server=server))

    def ratios(self, case: str, figure: str, to: str, *, server: str = OURS) -> list[float]:
        """`server`'s figure over that of `to`, a ratio a round."""
        return self._over((case, server), (case, to), figure, figure)

    def across(self, figure: str, case: str, base: str, *, server: str = OURS) -> float | None:
        """`case`'s figure over that of the case `base`, on the same server, round by round."""
        return _median(self._over((case, server), (base, server), figure, figure))

    def difference(self, case: str, figure: str, to: str, *, server: str = OURS) -> float | None:
        """`server`'s figure less that of `to`, the median of the differences of each round."""
        pairs = zip(self.rounds.get((case, server), ()), self.rounds.get((case, to), ()), strict=False)
        return _median([a[figure] - b[figure] for a, b in pairs if figure in a and figure in b])

    def within(self, case: str, over: str, under: str, *, server: str = OURS) -> float | None:
        """One figure over another of the same round, such as p99 over p50."""
        return _median(self._over((case, server), (case, server), over, under))

    def _over(self, one: tuple[str, str], other: tuple[str, str], over: str, under: str) -> list[float]:
        pairs = zip(self.rounds.get(one, ()), self.rounds.get(other, ()), strict=False)
        return [a[over] / b[under] for a, b in pairs if over in a and b.get(under)]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
