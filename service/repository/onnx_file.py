"""Reads .onnx files, within the available memory."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from streamcell.card.graphs.edit import all_tensors
from streamcell.service.load_errors import ModelLoadError

from .locate import check_file
from .memory import available_bytes
from .signed import SignedFiles

# The limit of protobuf, and the copies of a file in memory while it is read.
MOST_FILE_BYTES, _COPIES = 2**31 - 1, 2


def read_onnx(path: Path, *, weights: bool, signed: SignedFiles | None = None) -> onnx.ModelProto:
    """Read the model in `path`, on request with the weights in other files; a signed one as it was signed.

    Raises:
        ModelLoadError: the file or its external data cannot be read.
        UntrustedModelError: a file is not what was signed.
    """
    size = path.stat().st_size if signed is None else signed.size(path)
    if size > MOST_FILE_BYTES:
        raise ModelLoadError(
            f"an ONNX file has at most {MOST_FILE_BYTES} bytes, this one has {size}; "
            "keep its weights as external data",
            path,
        )
    check_readable(size, path)
    try:
        if signed is None:
            model = onnx.load(path, load_external_data=weights)
        else:
            model = onnx.load_model_from_string(signed.read(path))
            if weights:
                _read_weights(model, path.parent, signed)
    except DecodeError as error:
        raise ModelLoadError(
            f"not an ONNX file: {error}; it may be copied in part, or a pointer of Git LFS: export or copy it again",
            path,
        ) from error
    except OSError as error:
        raise ModelLoadError(f"cannot be read: {error.strerror or error}", path) from error
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelLoadError(
            f"its external data cannot be read: {error}; put the files of its weights at the paths that it names",
            path,
        ) from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelLoadError("not an ONNX file: it has no graph with outputs", path)
    if weights and any(t.data_location == onnx.TensorProto.EXTERNAL for t in all_tensors(model)):
        raise ModelLoadError("it has external data at a place where none can be read", path)
    return model


def _read_weights(model: onnx.ModelProto, folder: Path, signed: SignedFiles) -> None:
    """Put the weights of signed files in a model's `folder` into the model."""
    tensors: dict[Path, list[onnx.TensorProto]] = {}
    for tensor in all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensors.setdefault(folder / _external(tensor).get("location", ""), []).append(tensor)
    for path, its in tensors.items():
        check_readable(signed.size(path), path)
        data = memoryview(signed.read(path))
        for tensor in its:
            said = _external(tensor)
            offset = int(said.get("offset", 0))
            length = int(said["length"]) if "length" in said else len(data) - offset
            if min(offset, length) < 0 or offset + length > len(data):
                raise ValueError(f"{path.name} has no {length} bytes at {offset}")
            tensor.raw_data = bytes(data[offset : offset + length])
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def check_readable(size: int, path: Path) -> None:
    """Raise ModelLoadError if there is too little memory to read `size` bytes from `path`."""
    if _COPIES * size > (have := available_bytes()):
        raise ModelLoadError(f"too little memory to read its {size} bytes: {have} are available", path)


def external_files(model: onnx.ModelProto, folder: Path, root: Path | None) -> tuple[Path, ...]:
    """The files of the model's weights in its `folder`. If `root` is given, no link may lead out of it.

    Raises:
        ModelLoadError: one is not a file, or is not in the folder.
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
        if os.path.lexists(folder / name):  # reading reports a missing file
            check_file(folder / name, root)
    return tuple(folder / name for name in sorted(names))
