"""The run folder: weights and resume point as safetensors, configuration as JSON, metrics as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from streamcell.models.architectures.base import SequenceModel
from streamcell.models.architectures.build import build
from streamcell.models.errors import RunError
from streamcell.models.files import write_whole

FORMAT = "streamcell.run/1"
WEIGHTS, CONFIG, METRICS, PLOT, FORECAST, RESUME = (
    "weights.safetensors",
    "config.json",
    "metrics.csv",
    "loss.png",
    "forecast.png",
    "resume.safetensors",
)


@dataclass(frozen=True)
class Row:
    """One epoch in metrics.csv. Losses are per timestep; the gradient's norm is the mean before clipping.

    `valid_accuracy` is None, in the file nothing, if there are no classes.
    """

    epoch: int
    train_loss: float
    valid_loss: float
    grad_norm: float
    learning_rate: float
    elapsed_s: float
    valid_accuracy: float | None = None


@dataclass(frozen=True)
class Progressed:
    """How far a run has come.

    Attributes:
        rows: the epochs done.
        best_epoch: the one whose weights are kept, counted from 1; 0 before the first.
        elapsed_s: seconds of training, over all sittings.
    """

    rows: tuple[Row, ...] = ()
    best_epoch: int = 0
    elapsed_s: float = 0.0

    @property
    def best_loss(self) -> float:
        """The validation loss of the best epoch; infinite before the first epoch."""
        return self.rows[self.best_epoch - 1].valid_loss if self.best_epoch else float("inf")


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a model's state dict."""
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_whole(folder / WEIGHTS, safetensors.torch.save(plain))


def save_config(folder: Path, document: Mapping[str, Any]) -> None:
    """Write config.json: `document` under the format's name."""
    text = json.dumps({"format": FORMAT, "name": folder.resolve().name, **document}, indent=2)
    write_whole(folder / CONFIG, (text + "\n").encode())


def save_metrics(folder: Path, rows: Sequence[Row]) -> None:
    """Write metrics.csv, one line an epoch."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    writer.writerows(asdict(row).values() for row in rows)
    write_whole(folder / METRICS, text.getvalue().encode())


def save_resume(
    folder: Path, tensors: Mapping[str, Tensor], progressed: Progressed, config: Mapping[str, Any]
) -> None:
    """Write the resume point: one file, so that weights and bookkeeping cannot be of different epochs."""
    about = json.dumps({"config": dict(config), **asdict(progressed)})
    write_whole(folder / RESUME, safetensors.torch.save(dict(tensors), metadata={"progress": about}))


def load_resume(folder: Path) -> tuple[dict[str, Tensor], Progressed, dict[str, Any]]:
    """Tensors, progress and configuration of the resume point.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    path = folder / RESUME
    if not path.exists():
        done = " (that run is finished)" if (folder / WEIGHTS).exists() else ""
        raise RunError(f"{folder} holds nothing to resume{done}: leave --resume out to begin a run")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    rows = tuple(Row(**row) for row in about["rows"])
    return tensors, Progressed(rows, about["best_epoch"], about["elapsed_s"]), about["config"]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run.

    Raises:
        RunError: it is missing, is not JSON or is of another format.
    """
    path = folder / CONFIG
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise RunError(
            f"{folder} is not a run folder: {CONFIG} cannot be read ({error.strerror}); name one that streamcell train "
            "has written"
        ) from error
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RunError(f"{path} is not of format {FORMAT}")
    return document


def load_run(folder: str | Path) -> tuple[SequenceModel, dict[str, Any]]:
    """The trained model of a run folder, in eval mode on the CPU, and the run's config.json.

    Raises:
        RunError: the folder is no run, or its weights are missing or do not fit its configuration.
        ConfigError: its model configuration cannot be built.
    """
    folder = Path(folder)
    document = read_config(folder)
    model = build(document["model"])
    path = folder / WEIGHTS
    if not path.exists():
        raise RunError(f"{folder} has no {WEIGHTS}: no epoch of this run has finished yet")
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} does not fit the model in {CONFIG}: {error}") from error
    return model.eval(), document
