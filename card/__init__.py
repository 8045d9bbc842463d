"""The model card: what an .onnx file says of itself, read by the server and written by the exporter.

This package is the one contract between training and serving. It imports pydantic and nothing else of weight;
`graphs/`, which it does not import by itself, needs onnx.
"""

from . import telemetry
from .card import FORMAT, METADATA_KEY, CardError, ModelCard, read_card, write_card
from .generation import Generation, check_generation
from .signature import DTYPES, Layout, OpenInput, Signature, State, Tensor

__all__ = [
    "DTYPES",
    "FORMAT",
    "METADATA_KEY",
    "CardError",
    "Generation",
    "Layout",
    "ModelCard",
    "OpenInput",
    "Signature",
    "State",
    "Tensor",
    "check_generation",
    "read_card",
    "telemetry",
    "write_card",
]
