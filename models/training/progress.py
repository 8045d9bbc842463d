"""What a run reports as it goes, and how the terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich import progress as bars
from rich.console import Console
from rich.markup import escape

from .run_folder import Row


@dataclass(frozen=True)
class Report:
    """One epoch: its row, the validation loss of the best epoch so far, the share of the run that is done."""

    row: Row
    best_loss: float
    fraction: float


class Progress(Protocol):
    """Receives reports of a run's progress."""

    def parsed(self, done: int, total: int) -> None:
        """`done` of `total` scores are parsed."""

    def noted(self, notes: Sequence[str]) -> None:
        """The data has been read, and the user should know this of it."""

    def epoch(self, report: Report) -> None:
        """An epoch is over."""


class RichProgress:
    """Shows a run on the terminal: one bar for parsed scores, one for epochs.

    A context manager: it finishes the bars however the run ends.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bars = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[told]}"),
            bars.TimeElapsedColumn(),
            console=console,
        )
        self._parsing: bars.TaskID | None = None
        self._training: bars.TaskID | None = None

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def parsed(self, done: int, total: int) -> None:
        """`done` of `total` scores are parsed."""
        if self._parsing is None:
            self._parsing = self._bars.add_task("parsing scores", total=total, told="")
        self._bars.update(self._parsing, completed=done, told=f"{done}/{total}")

    def noted(self, notes: Sequence[str]) -> None:
        """The data has been read, and the user should know this of it."""
        for note in notes:
            self._bars.console.print(f"data: {escape(note)}", highlight=False)

    def epoch(self, report: Report) -> None:
        """An epoch is over."""
        if self._training is None:
            self._training = self._bars.add_task("training", total=1.0, told="")
        row = report.row
        told = (
            f"epoch {row.epoch}  train {row.train_loss:.3f}  valid {row.valid_loss:.3f} "
            f"(best {report.best_loss:.3f})  |g| {row.grad_norm:.2f}"
        )
        if row.valid_accuracy is not None:
            told += f"  accuracy {row.valid_accuracy:.1%}"
        self._bars.update(self._training, completed=report.fraction, told=told)
