"""Reads .onnx files, within the memory that there is."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from streamcell.service.graph.edit import all_tensors
from streamcell.service.load_errors import ModelLoadError

from .locate import check_file
from .memory import available_bytes

# What protobuf can read, and how often a file is there at once while it is read.
MOST_FILE_BYTES, _COPIES = 2**31 - 1, 2


def read_onnx(path: Path, *, weights: bool) -> onnx.ModelProto:
    """The model in `path`, if it is wanted with the weights that lie in other files.

    Raises:
        ModelLoadError: the file or its external data cannot be read.
    """
    size = path.stat().st_size
    if size > MOST_FILE_BYTES:
        raise ModelLoadError(
            f"an ONNX file has at most {MOST_FILE_BYTES} bytes, this one has {size}; "
            "keep its weights as external data",
            path,
        )
    check_readable(size, path)
    try:
        model = onnx.load(path, load_external_data=weights)
    except DecodeError as error:
        raise ModelLoadError(f"not an ONNX file: {error}", path) from error
    except OSError as error:
        raise ModelLoadError(f"cannot be read: {error.strerror or error}", path) from error
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelLoadError(
            f"its external data cannot be read: {error}; put the files of its weights where it names them",
            path,
        ) from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelLoadError("not an ONNX file: it holds no graph with outputs", path)
    if weights and any(t.data_location == onnx.TensorProto.EXTERNAL for t in all_tensors(model)):
        raise ModelLoadError("it has external data where none can be read", path)
    return model


def check_readable(size: int, path: Path) -> None:
    """Raise ModelLoadError if there is too little memory to read `size` bytes from `path`."""
    if _COPIES * size > (have := available_bytes()):
        raise ModelLoadError(f"too little memory to read its {size} bytes: {have} are available", path)


def external_files(model: onnx.ModelProto, folder: Path, root: Path | None) -> tuple[Path, ...]:
    """The files in `folder`, where the model's is, that hold its weights. If there is a `root`, no link may lead out.

    Raises:
        ModelLoadError: one is none, or is not beside it.
    """
    names = {
        entry.value
        for tensor in all_tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in names:
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelLoadError(f"its external data cannot be read: {name!r} is not in its own folder")
        if os.path.lexists(folder / name):  # that it is missing is told where it is read
            check_file(folder / name, root)
    return tuple(folder / name for name in sorted(names))
