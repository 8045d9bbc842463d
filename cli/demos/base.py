"""Defines a demo: a name, one of the five shapes of recurrent models, and a function that shows it.

To add one: a module `cli/demos/NAME.py` that imports only typer, rich and the standard library at module level
and defines `DEMO = Demo(...)`, and a line for it in `cli/demos/registry.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console

# The order in which they are listed. "Aligned": an output for each input, at once.
Shape = Literal["one-to-one", "many-to-one", "many-to-many, aligned", "one-to-many", "encoder–decoder"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
SESSIONS = 64


@dataclass(frozen=True)
class Options:
    """Options of the command line for all demos; each demo uses those that apply to it.

    Attributes:
        console: shows the demo's progress.
        data_folder: where parsed data sets are cached.
        minutes: train for this time; None: for the demo's number of epochs, which gives the same weights each time.
        sessions: sessions open at a time.
        passes: how often the test part is streamed, if that is measured.
        retrain: train again if there is a finished run.
        seed: of what a demo draws: when it kills, and whom.
        sync: a demo with a store has each step stored before its reply.
    """

    console: Console
    data_folder: Path = Path("data")
    minutes: float | None = None
    sessions: int = SESSIONS
    passes: int = 4
    retrain: bool = False
    seed: int = 1
    sync: bool = False

    def training(self, epochs: int | None = None) -> dict[str, Any]:
        """How long to train, as settings of a run: `minutes` if given, else `epochs`, else the preset's."""
        if self.minutes is not None:
            return {"minutes": self.minutes}
        return {} if epochs is None else {"epochs": epochs}


@dataclass(frozen=True)
class Report:
    """The results of a demo.

    Attributes:
        title: title of the printed table.
        rows: rows of the table, as (name, value).
        figures: the same as JSON values, for `report.json`.
        files: the files that the demo wrote, by description.
        wrong: what the demo shows never to happen, and has happened; the command then ends with exit code 1.
    """

    title: str
    rows: Sequence[tuple[str, str]]
    figures: dict[str, Any]
    files: dict[str, Path]
    wrong: Sequence[str] = ()

    def save(self, folder: Path) -> Report:
        """Write `report.json` into `folder`; returns the report with that file among its files."""
        path = folder / "report.json"
        files = {**self.files, "report": path}
        document = {**self.figures, "files": {what: str(file) for what, file in files.items()}}
        path.write_text(json.dumps(document, indent=2) + "\n")
        return replace(self, files=files)


@dataclass(frozen=True)
class Demo:
    """One demo.

    Attributes:
        name: its name on the command line.
        shape: which of the five shapes it shows.
        summary: one line about data and task.
        run: (folder, options) → report. It trains on the demo's data, exports, starts a server in a process of
            its own, streams, and saves its report and pictures in `folder`, which exists. It reuses the files of a
            finished run there. It may raise `ModelError`, `ExportError`, `ServerProcessError` and `StreamCellError`:
            the command prints the error and ends with exit code 1.
        default_folder: the folder of the demo's files if none is given; None: runs/demo-NAME.
        sessions: sessions open at a time if no number is given.
    """

    name: str
    shape: Shape
    summary: str
    run: Callable[[Path, Options], Report]
    default_folder: Path | None = None
    sessions: int = SESSIONS

    @property
    def folder(self) -> Path:
        """The folder of the demo's files if none is given."""
        return self.default_folder or Path(f"runs/demo-{self.name}")
