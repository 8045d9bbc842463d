"""What a run tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .run_folder import Row


@dataclass(frozen=True)
class Report:
    """One epoch, for whoever watches: its row, the validation loss of the best, the share of the run done."""

    row: Row
    best_loss: float
    fraction: float


class Progress(Protocol):
    """Who watches a run."""

    def parsed(self, done: int, total: int) -> None:
        """`done` of `total` scores are parsed."""

    def epoch(self, report: Report) -> None:
        """An epoch is over."""
