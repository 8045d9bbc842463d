"""PyTorch → ONNX: own emitters for the project's models, PyTorch's exporter for yours, one proof for both."""

import streamcell.card.telemetry  # noqa: F401  # before ONNX Runtime is imported

from .errors import ExportError, ProofError, SpecError, UserCodeError
from .examples import InputSpec, example_tensor, examples_from, forward_takes
from .export_model import export_model
from .export_module import export_module
from .export_run import export_run, why_mute
from .in_int8 import gains
from .proof import METRIC, TOLERANCES
from .publish import ExportOptions
from .spec import is_spec, load_module

__all__ = [
    "METRIC",
    "TOLERANCES",
    "ExportError",
    "ExportOptions",
    "InputSpec",
    "ProofError",
    "SpecError",
    "UserCodeError",
    "example_tensor",
    "examples_from",
    "export_model",
    "export_module",
    "export_run",
    "forward_takes",
    "gains",
    "is_spec",
    "load_module",
    "why_mute",
]
