"""Parsed data in one .npz file with a SHA-256 beside it. Nothing in it is pickled."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamcell.models.errors import DataError
from streamcell.models.files import write_whole

from .piano import KEYS, Roll

FORMAT = "streamcell.rolls/1"


def write_rolls(path: Path, names: Sequence[str], rolls: Sequence[Roll], report: dict[str, Any]) -> None:
    """Write `rolls` bool[time, 88] to `path`, and `path`.sha256 in the format of sha256sum."""
    write_arrays(
        path,
        FORMAT,
        names=np.array(list(names)),
        lengths=np.array([len(roll) for roll in rolls], np.int64),
        keys=np.packbits(np.concatenate(rolls), axis=1),
        report=np.array(json.dumps(report)),
    )


def read_rolls(path: Path) -> tuple[list[str], list[Roll], dict[str, Any]]:
    """Names, rolls bool[time, 88] and report, as they were written.

    Raises:
        DataError: the checksum is missing or is not the file's, or the file is of another format.
    """
    arrays = read_arrays(path, FORMAT)
    keys = np.unpackbits(arrays["keys"], axis=1, count=KEYS).astype(np.bool_)
    rolls = np.split(keys, np.cumsum(arrays["lengths"])[:-1])
    return [str(name) for name in arrays["names"]], list(rolls), json.loads(str(arrays["report"]))


def write_arrays(path: Path, file_format: str, **arrays: NDArray[Any]) -> None:
    """Write arrays and the name of their format to `path`, and `path`.sha256."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, format=np.array(file_format), **arrays)
    data = buffer.getvalue()
    write_whole(path, data)
    write_whole(_checksum_path(path), f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode())


def read_arrays(path: Path, file_format: str) -> dict[str, NDArray[Any]]:
    """The arrays, as they were written.

    Raises:
        DataError: the checksum is missing or is not the file's, or the file is of another format.
    """
    data = path.read_bytes()
    beside = _checksum_path(path)
    written = beside.read_text().split()[:1] if beside.exists() else []
    found = hashlib.sha256(data).hexdigest()
    if written != [found]:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {found}, {beside.name} says {written or 'nothing'}"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if str(arrays["format"]) != file_format:
            raise DataError(f"{path} is of format {arrays['format']}, expected {file_format}")
        return {name: arrays[name] for name in arrays.files}


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
