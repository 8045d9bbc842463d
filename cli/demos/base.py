"""What a demo is: a name, one of the five shapes of recurrent models, and a function that shows it.

To add one: a module `cli/demos/NAME.py` that imports only typer, rich and the standard library at module level
and defines `DEMO = Demo(...)`, and a line for it in `cli/demos/registry.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console

# The order in which they are listed. "Aligned": an output for each input, at once.
Shape = Literal["one-to-one", "many-to-one", "many-to-many, aligned", "one-to-many", "encoder–decoder"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


@dataclass(frozen=True)
class Options:
    """What the command line says to every demo; each uses what has a meaning for it.

    Attributes:
        console: shows the demo's progress.
        data_folder: where parsed data sets are cached.
        minutes: train for so long, by the clock; None: for the demo's number of epochs, which gives the same
            weights each time.
        sessions: how many sessions to hold open at a time.
        passes: how often the test part is streamed, if that is measured.
        retrain: train again if a finished run is there.
    """

    console: Console
    data_folder: Path = Path("data")
    minutes: float | None = None
    sessions: int = 64
    passes: int = 4
    retrain: bool = False

    def training(self, epochs: int | None = None) -> dict[str, Any]:
        """How long to train, as settings of a run: `epochs`, or the preset's own; `minutes` go before both."""
        if self.minutes is not None:
            return {"minutes": self.minutes}
        return {} if epochs is None else {"epochs": epochs}


@dataclass(frozen=True)
class Report:
    """What a demo found.

    Attributes:
        title: of the table that is printed.
        rows: what the table says, as (what, value).
        figures: the same as JSON values, for `report.json`.
        files: what the demo left, by what it is.
    """

    title: str
    rows: Sequence[tuple[str, str]]
    figures: dict[str, Any]
    files: dict[str, Path]

    def save(self, folder: Path) -> Report:
        """Write `report.json` into `folder`; returns the report with that file among its files."""
        path = folder / "report.json"
        files = {**self.files, "report": path}
        document = {**self.figures, "files": {what: str(file) for what, file in files.items()}}
        path.write_text(json.dumps(document, indent=2) + "\n")
        return Report(self.title, self.rows, self.figures, files)


@dataclass(frozen=True)
class Demo:
    """One demo.

    Attributes:
        name: what the command line calls it.
        shape: which of the five shapes it shows.
        summary: one line about data and task.
        run: (folder, options) → report. It trains on the demo's data, exports, starts a server in a process of
            its own, streams, and saves its report and what it drew in `folder`, which is there. What a finished
            run left there is used again. It may raise what the packages raise (`ModelError`, `ExportError`,
            `ServerProcessError`, `StreamCellError`): the command prints that and ends with exit code 1.
        default_folder: where the demo's files go if nothing else is said; None: runs/demo-NAME.
    """

    name: str
    shape: Shape
    summary: str
    run: Callable[[Path, Options], Report]
    default_folder: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the demo's files go if nothing else is said."""
        return self.default_folder or Path(f"runs/demo-{self.name}")
