"""PyTorch → ONNX: own emitters for the project's models, PyTorch's exporter for yours, one proof for both."""

from .errors import ExportError, ProofError, SpecError
from .export_model import export_model
from .proof import METRIC, TOLERANCES

__all__ = [
    "METRIC",
    "TOLERANCES",
    "ExportError",
    "ProofError",
    "SpecError",
    "export_model",
]
