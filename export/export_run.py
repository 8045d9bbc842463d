"""A run folder of `streamcell train` to an .onnx file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamcell.card import ModelCard
from streamcell.models import ModelError, load_run

from .errors import ExportError
from .export_model import export_model


def export_run(
    folder: str | Path,
    path: str | Path,
    *,
    name: str | None = None,
    description: str = "",
    precision: str = "fp32",
    tolerance: float | None = None,
    lengths: bool = True,
) -> ModelCard:
    """Export the trained model of a run folder; what config.json says of its training goes into the card.

    Args:
        folder: as `streamcell train` wrote it, RUNS/NAME.
        path, name, description, precision, tolerance, lengths: as for `export_model`.

    Raises:
        ExportError: the folder is no run or its weights do not fit; else as `export_model`.
    """
    try:
        model, document = load_run(folder)
    except ModelError as error:
        raise ExportError(f"cannot load the run: {error}") from error
    training: dict[str, Any] = {
        "run": document.get("name", Path(folder).resolve().name),
        **{key: value for key, value in document.items() if key not in ("format", "name", "model")},
    }
    return export_model(
        model,
        path,
        name=name,
        description=description,
        training=training,
        precision=precision,
        tolerance=tolerance,
        lengths=lengths,
    )
