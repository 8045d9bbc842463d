"""Errors of ONNX Runtime while a model is loaded, explained with their remedies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx
import onnxruntime as ort

from streamcell.service.errors import ServiceError, node_error_text
from streamcell.service.load_errors import DeviceError, ModelLoadError
from streamcell.service.repository.locate import sidecar_path
from streamcell.service.repository.model_file import ModelFile


@contextmanager
def making_sessions(file: ModelFile, model: onnx.ModelProto) -> Iterator[None]:
    """Explain why ONNX Runtime makes no session of `model`, the content of `file`.

    Raises:
        ModelLoadError: for any exception that is not typed.
    """
    newest = onnx.defs.onnx_opset_version()
    opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)

    def remedy(text: str) -> str:
        if "ShapeInference" in text:
            return description_remedy(file)
        if opset > newest:
            return f"it uses opset {opset}: export it again with an opset of {newest} or lower"
        return f"export it again with standard operators, whose dtypes fit (ONNX Runtime {ort.__version__})"

    with _explained("ONNX Runtime does not take the graph", remedy):
        yield


@contextmanager
def first_runs(file: ModelFile) -> Iterator[None]:
    """Explain why the warm-up of `file` fails.

    Raises:
        ModelLoadError: for any exception that is not typed.
    """
    with _explained("its first run fails", lambda _: description_remedy(file)):
        yield


def description_remedy(file: ModelFile) -> str:
    """The remedy if a model's description is wrong."""
    if file.description.source == "card":
        return "its card does not describe its graph: export it again"
    sidecar = sidecar_path(file.path).name
    return f"say the right step_shape, shape or layout of inputs, outputs and states in {sidecar}"


@contextmanager
def _explained(what: str, remedy: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except (ModelLoadError, DeviceError, ServiceError, MemoryError, RecursionError):
        raise
    except Exception as error:  # ONNX Runtime's errors share no base class
        text = node_error_text(error)
        raise ModelLoadError(f"{what}: {text}; {remedy(text)}") from error
