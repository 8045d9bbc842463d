"""Options NAME=VALUE and NAME=FILE.npy as what a session is given when it opens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .tables import TableError

if TYPE_CHECKING:
    from streamcell.client import Tensor


def open_inputs(options: Sequence[str], wanted: Sequence[Tensor]) -> dict[str, Any]:
    """By name an array of the dtype that the model wants.

    Args:
        options: as given on the command line.
        wanted: the model's inputs of the opening.

    Raises:
        TableError: an option without a name or with an unknown one, a file that is no NPY, a value that the dtype
            cannot hold.
        OSError: a file cannot be read.
    """
    known = {tensor.name: tensor for tensor in wanted}
    found: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise TableError(f"--open {option}: expected NAME=VALUE or NAME=FILE.npy")
        if name not in known:
            names = ", ".join(known) or "none"
            raise TableError(f"--open {option}: the model takes no {name!r} when it opens; it takes {names}")
        if name in found:
            raise TableError(f"--open {option}: {name!r} is given twice")
        found[name] = _array(option, known[name], text)
    return found


def _array(option: str, tensor: Tensor, text: str) -> Any:
    import numpy as np

    try:
        if text.endswith(".npy"):
            with open(text, "rb") as file:
                value = np.lib.format.read_array(file, allow_pickle=False)
        else:
            value = np.array(json.loads(text))
    except json.JSONDecodeError:
        raise TableError(f"--open {option}: expected a number, a JSON list or an .npy file") from None
    except ValueError as error:
        raise TableError(f"--open {option}: {error}") from None
    if value.dtype.kind not in "biuf":
        raise TableError(f"--open {option}: expected numbers")
    with np.errstate(all="ignore"):
        cast = value.astype(tensor.dtype)
    if cast.dtype.kind != "f" and not np.array_equal(cast, value):
        raise TableError(f"--open {option}: {tensor.dtype} cannot hold {text}")
    if cast.shape != tensor.step_shape:
        raise TableError(f"--open {option}: expected shape {list(tensor.step_shape)}, got {list(cast.shape)}")
    return cast
