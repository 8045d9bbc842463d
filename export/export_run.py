"""A run folder of `streamcell train` to an .onnx file."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any, Literal, Unpack

from streamcell.card import Generation, ModelCard
from streamcell.models import ModelError, load_run

from .errors import ExportError
from .export_model import export_model
from .publish import ExportOptions


def export_run(
    folder: str | Path,
    path: str | Path,
    *,
    lengths: bool = True,
    generation: Generation | Literal["auto"] | None = "auto",
    **options: Unpack[ExportOptions],
) -> ModelCard:
    """Export the trained model of a run folder; the card gets the training section of config.json.

    Absolute paths in it are cut to their last part: a card is published, the trainer's folders are not.

    Args:
        folder: as `streamcell train` wrote it, RUNS/NAME.
        path, lengths, generation, options: as for `export_model`.

    Raises:
        ExportError: the folder is no run or its weights do not fit; else as `export_model`.
    """
    try:
        model, document = load_run(folder)
    except ModelError as error:
        raise ExportError(f"cannot load the run: {error}") from error
    training: dict[str, Any] = {
        "run": document.get("name", Path(folder).resolve().name),
        **{
            key: _portable(value) for key, value in document.items() if key not in ("format", "name", "model")
        },
    }
    return export_model(model, path, lengths=lengths, generation=generation, training=training, **options)


def _portable(value: Any) -> Any:
    """The same JSON value, each absolute path replaced by its last part."""
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
