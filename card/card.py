"""The card itself and its place in an ONNX file: one JSON document under one metadata key."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .generation import Generation, check_generation
from .signature import Signature

FORMAT: Literal["streamcell.card/1"] = "streamcell.card/1"
METADATA_KEY = "streamcell.card"
# Of the document: it goes to clients whole, and their limit on a message is 4 MiB.
MOST_BYTES = 1 << 20
_MOST_PROBLEMS, _MOST_TEXT = 10, 200


class CardError(ValueError):
    """The file carries a card that cannot be read."""


class ModelCard(BaseModel):
    """Everything needed to serve a file, and where it came from.

    Unknown keys are kept out of the object but do not fail it: a newer exporter may write more.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    format: Literal["streamcell.card/1"] = FORMAT
    name: str
    # "lstm", "gru", "rnn", "mlp", "cnn", "tcn", "seq2seq", or the class name of a user's own module.
    kind: str
    description: str = ""
    signature: Signature
    # How an output becomes the next input; None: the model does not generate.
    generation: Generation | None = None
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    # Hyper-parameters from which the PyTorch module can be built again; empty for a user's own module.
    config: dict[str, Any] = Field(default_factory=dict)
    # Provenance: data set, split sizes, seed, epochs, losses.
    training: dict[str, Any] = Field(default_factory=dict)
    # What the proof before saving measured: largest errors against PyTorch, by check.
    proof: dict[str, Any] = Field(default_factory=dict)
    # Versions of the libraries that made the file.
    versions: dict[str, str] = Field(default_factory=dict)
    # ISO 8601, UTC.
    created: str = ""

    @model_validator(mode="after")
    def _generates(self) -> ModelCard:
        if self.generation is not None:
            check_generation(self.signature, self.generation)
        return self


class _HasMetadata(Protocol):
    """What this module needs of `onnx.ModelProto`."""

    @property
    def metadata_props(self) -> Any: ...


def read_card(model: _HasMetadata) -> ModelCard | None:
    """The card in `model` (an `onnx.ModelProto`), or None if it has none.

    Raises:
        CardError: the card is there but is not valid JSON or lacks what a card must say.
    """
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            if len(entry.value) > MOST_BYTES:
                raise CardError(
                    f"the embedded model card has at most {MOST_BYTES} bytes, this one has {len(entry.value)}"
                )
            try:
                return ModelCard.model_validate_json(entry.value)
            except ValidationError as error:
                raise CardError(f"the embedded model card is not valid: {_explain(error)}") from error
    return None


def _explain(error: ValidationError) -> str:
    """The first problems, each by its key and without the value, which may be long."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = [
        f"{'.'.join(map(str, each['loc']))}: {each['msg']}"[:_MOST_TEXT] for each in problems[:_MOST_PROBLEMS]
    ]
    more = f"; and {len(problems) - len(told)} more" if len(problems) > len(told) else ""
    return "; ".join(told) + more


def write_card(model: _HasMetadata, card: ModelCard) -> None:
    """Put `card` into `model` (an `onnx.ModelProto`), in place of the one it may carry."""
    for entry in list(model.metadata_props):
        if entry.key == METADATA_KEY:
            model.metadata_props.remove(entry)
    model.metadata_props.add(key=METADATA_KEY, value=card.model_dump_json())
