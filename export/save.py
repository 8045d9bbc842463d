"""Puts a proved model into its file: the whole of it or nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from streamcell.card import ModelCard, read_card, write_card

from .errors import ExportError
from .graph import check
from .runner import Runner
from .tensors import Array


def save(
    model: onnx.ModelProto, card: ModelCard, path: Path, *, inputs: Sequence[Array], states: Sequence[Array]
) -> None:
    """Write `model` with `card` in it to `path`, by way of a file next to it that is renamed once it is right.

    The file is read back before that: graph and card must be what was meant, and a run on `inputs` and `states` must
    give to the bit what the model in memory gives.

    Raises:
        ExportError: the file's content is wrong, or it cannot be written. `path` is then unchanged.
    """
    write_card(model, card)
    model = check(model)
    wanted = Runner(model.SerializeToString(), card.signature)(inputs, states)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise ExportError(f"cannot write to {path.parent}: {error.strerror}") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        _verify(temporary, model, card, inputs, states, wanted)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _verify(
    file: Path,
    model: onnx.ModelProto,
    card: ModelCard,
    inputs: Sequence[Array],
    states: Sequence[Array],
    wanted: tuple[tuple[Array, ...], tuple[Array, ...]],
) -> None:
    data = file.read_bytes()
    loaded = onnx.load_model_from_string(data)
    if loaded != model or read_card(loaded) != card:
        raise ExportError(f"{file.name} read back is not the model that was written")
    outputs, after = Runner(data, card.signature)(inputs, states)
    for given, meant in zip((*outputs, *after), (*wanted[0], *wanted[1]), strict=True):
        if not np.array_equal(given, meant):
            raise ExportError(f"{file.name} read back does not compute what the model in memory computes")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
