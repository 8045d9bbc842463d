"""A run folder of `streamcell train` to an .onnx file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Literal, Unpack

import numpy as np
import torch

from streamcell.card import Generation, ModelCard
from streamcell.models import (
    LOSS_NAMES,
    ModelError,
    SequenceModel,
    TrainConfig,
    load_data,
    load_run,
    score,
    score_of,
)

from .errors import ExportError
from .export_model import export_model
from .names import X, Y
from .publish import ExportOptions
from .reference import ModelReference
from .runner import Runner
from .tensors import as_array, as_tensor


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
        path, lengths, generation, options: as for `export_model`. With "auto", a forecast of every column of a CSV
            file generates, too: its output is the next input.

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
    if generation == "auto":
        generation = _next_row(document) or "auto"
    test = partial(_tested, model, document) if options.get("precision") == "int8" else None
    return export_model(
        model, path, lengths=lengths, generation=generation, training=training, test=test, **options
    )


def why_mute(training: Mapping[str, Any]) -> str | None:
    """Why a forecast cannot generate, by a card's training section; None: it can, or the model is no forecast."""
    data = training.get("data", {})
    columns = data.get("columns")
    if not columns:
        return None
    if training.get("training", {}).get("quantiles"):
        return "it gives quantiles, and none of them is the next input; train without --quantiles"
    if columns != data.get("targets"):
        return "it does not forecast every column of its input, one by one; train without --target and --gaps mask"
    return None


def _next_row(document: Mapping[str, Any]) -> Generation | None:
    """The generation of a forecast of whole rows: y is the next x; None for another model."""
    if not document.get("data", {}).get("columns") or why_mute(document) is not None:
        return None
    result = document["training"].get("result", {})
    deviation = result.get("forecast", {}).get("deviation")
    return Generation(
        output=Y, input=X, head="real", deviation=None if deviation is None else tuple(deviation)
    )


def _tested(model: SequenceModel, document: Mapping[str, Any], runner: Runner) -> dict[str, Any]:
    """The card's "test": the run's own test data, by the model and by `runner`, or why there is none."""
    try:
        data = load_data(TrainConfig.from_json(document["training"]))
    except (ModelError, KeyError, TypeError) as error:
        return {"left_out": f"the data set cannot be read: {error}"}
    if (data.input_size, data.output_size) != (model.input_size, model.output_size):
        return {"left_out": f"{data.name} is not what the model was made for"}
    reference = ModelReference(model)
    largest = 0.0

    def in_int8(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        states = reference.initial(len(x))
        (y,), _ = runner([as_array(x)], states, as_array(lengths))
        (wanted,), _ = reference([as_array(x)], states)
        for row, length in enumerate(lengths.tolist()):
            largest = max(largest, float(np.abs(y[row, :length] - wanted[row, :length]).max(initial=0.0)))
        return as_tensor(y)

    scores = {"float32": score(model, data, "test"), "int8": score_of(in_int8, data, "test")}
    return {
        "loss": LOSS_NAMES[data.distribution],
        **{name: asdict(each) for name, each in scores.items()},
        "largest_difference": largest,
    }


def _portable(value: Any) -> Any:
    """The same JSON value, each absolute path replaced by its last part."""
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
