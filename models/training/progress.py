"""A run on the terminal: one bar for parsing scores, one for epochs."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from .watch import Report


class RichProgress:
    """Shows what `train` reports; a context manager, so that the bars are finished however the run ends."""

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._parsing: TaskID | None = None
        self._training: TaskID | None = None

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
            told += f"  right {row.valid_accuracy:.1%}"
        self._bars.update(self._training, completed=report.fraction, told=told)
