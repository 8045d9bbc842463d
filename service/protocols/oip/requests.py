"""Parses requests of the Open Inference Protocol into `ParsedRequest`s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError

from streamcell.proto.inference import oip
from streamcell.service.errors import (
    MalformedMessage,
    NotSupported,
    UnknownOpenInput,
    UnknownOutput,
    WrongParameter,
    WrongShape,
    shown,
)
from streamcell.service.protocols.common.openings import Given
from streamcell.service.repository.model_file import ModelFile

from .reply import ReplyTemplate
from .tensors import RequestShape, check_bytes, form, payloads

# A sequence's key: the model's name, and the sequence id that the client chose.
Key = tuple[str, int | str]

_LONGEST_ID = 128  # characters of a sequence's, as in Triton
MOST_ID_BYTES = 1024  # of a request's own id, which its answer repeats
_ANSWERS = 1024  # kept at a time

_TYPES = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    "triton_enable_empty_final_response": ("bool_param",),
    "streamcell_number": ("int64_param",),
    "streamcell_token": ("string_param",),
}
_RESERVED = ("triton_", "streamcell_")


class Flags(NamedTuple):
    """A request's part in a sequence; `key` is None if it has none.

    Attributes:
        number: its place among the requests of the sequence, from 1 on; 0: it does not say.
        token: the secret of who started the sequence; empty if there is none.
    """

    key: Key | None
    start: bool = False
    end: bool = False
    number: int = 0
    token: str = ""


class TakesSteps(Protocol):
    """The part of a live sequence that a plan uses."""

    def add(self, entry: Any, work: Any, after_arrivals: Any = None) -> bool | None:
        """Take one request; None if the sequence accepts no more requests."""


@dataclass(slots=True, eq=False)
class ParsedRequest:
    """A parsed request without its id and payload.

    Attributes:
        file: the version of the model that it was checked against.
        version: the version that it names; empty for none.
        answer: its reply without id and payload.
        given: what it gives for the opening; such a request is parsed each time.
        sequence: the live sequence that it is a step of, once known; then no other lookup is needed.
    """

    file: ModelFile
    version: str
    flags: Flags
    form: RequestShape
    answer: ReplyTemplate
    given: tuple[Given, ...] = ()
    sequence: TakesSteps | None = None


def parse(data: bytes) -> oip.ModelInferRequest:
    """The message as protobuf reads it.

    Raises:
        MalformedMessage: it is no ModelInferRequest.
    """
    try:
        return oip.ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise MalformedMessage("the message is not an inference.ModelInferRequest") from error


def flags(request: Any) -> Flags:
    """A request's part in a sequence, as far as its parameters can be read: see `check_parameters`."""
    values = {
        name: getattr(parameter, kind)
        for name, parameter in request.parameters.items()
        if (kind := parameter.WhichOneof("parameter_choice")) in _TYPES.get(name, ())
    }
    sequence: int | str = values.get("sequence_id", 0)
    known = bool(sequence) and (isinstance(sequence, int) or len(sequence) <= _LONGEST_ID)
    key = (request.model_name, sequence) if known else None
    return Flags(
        key,
        values.get("sequence_start", False),
        values.get("sequence_end", False),
        values.get("streamcell_number", 0),
        values.get("streamcell_token", ""),
    )


def check_parameters(request: Any, found: Flags) -> None:
    """Raise WrongParameter for an invalid parameter.

    These are: a wrong type, an unknown name with a reserved prefix, an id or a token that is too long, a number that
    is none, and a start, an end or a number without an id.
    """
    for name, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if name in _TYPES and kind not in _TYPES[name]:
            raise WrongParameter(
                f"invalid value type for {shown(name)} parameter, expected {' or '.join(_TYPES[name])}, got {kind}",
                parameter=name,
            )
        if name.startswith(_RESERVED) and name not in _TYPES:
            prefix = next(each for each in _RESERVED if name.startswith(each))
            raise WrongParameter(
                f"parameter keys starting with {prefix!r} are reserved, and {shown(name)} is none",
                parameter=name,
            )
    if len(request.id.encode()) > MOST_ID_BYTES:
        raise WrongParameter(f"a request's id may have {MOST_ID_BYTES} bytes", limit=MOST_ID_BYTES)
    given = request.parameters.get("sequence_id")
    if given is not None and len(given.string_param) > _LONGEST_ID:
        raise WrongParameter(f"a sequence_id may have {_LONGEST_ID} characters", limit=_LONGEST_ID)
    if found.key is None and (found.start or found.end):
        raise WrongParameter(
            f"inference request to model {shown(request.model_name)} must specify a non-zero or non-empty correlation "
            "ID (sequence_id) if it starts or ends a sequence"
        )
    _check_number(request, found)


def _check_number(request: Any, found: Flags) -> None:
    if len(found.token) > _LONGEST_ID:
        raise WrongParameter(f"a streamcell_token may have {_LONGEST_ID} characters", limit=_LONGEST_ID)
    if found.key is None and (found.number or found.token):
        raise WrongParameter(
            "streamcell_number and streamcell_token are for requests of a sequence (sequence_id)"
        )
    if "streamcell_number" in request.parameters and (found.number < 1 or (found.number > 1 and found.start)):
        raise WrongParameter(
            f"streamcell_number counts the requests of a sequence from 1, which has the START, got {found.number}",
            got=found.number,
        )


def plan(
    request: Any, found: Flags, file: ModelFile, answers: ReplyTemplates
) -> tuple[ParsedRequest, tuple[bytes, ...]]:
    """What `request` asks of the model, and the bytes of its inputs in the signature's order.

    Raises:
        InvalidArgument: it does not fit the model, or has an invalid parameter.
        NotSupported: it asks for shared memory or for classification.
    """
    signature = file.signature
    check_parameters(request, found)
    for tensor in (*request.inputs, *request.outputs):
        for name in tensor.parameters:
            if name.startswith("shared_memory") or name == "classification":
                raise NotSupported(
                    f"tensor {shown(tensor.name)}: this server does not have {shown(name)}: send the tensors in the "
                    "request, and read them whole from the reply",
                    parameter=name,
                )
    inputs, data, given = payloads(signature, request)
    if given and found.key is not None and not found.start:
        raise UnknownOpenInput(
            f"input {given[0].name!r} is given once, when a sequence opens: send it with its START request alone",
            input=given[0].name,
        )
    asked = form(signature, inputs)
    if found.key is not None and signature.states and asked.rows > 1:
        raise WrongShape(
            f"a request of a sequence carries one row, this one carries {asked.rows}", got=asked.rows
        )
    check_bytes(signature, data, asked)
    names = tuple(output.name for output in request.outputs) or tuple(t.name for t in signature.outputs)
    known = {t.name for t in signature.outputs} | {state.output for state in signature.states}
    for at, name in enumerate(names):
        if name not in known or name in names[:at]:
            raise UnknownOutput(
                f"unexpected inference output {shown(name)} for model {file.name!r}; it has: "
                f"{', '.join(sorted(known))}, each of which may be asked for once",
                output=name,
            )
    answer = answers.get(file, names, asked)
    return ParsedRequest(file, request.model_version, found, asked, answer, given), data


class ReplyTemplates:
    """The replies' constant parts, made once for each shape of request."""

    def __init__(self) -> None:
        self._answers: dict[tuple[ModelFile, tuple[str, ...], RequestShape], ReplyTemplate] = {}

    def get(self, file: ModelFile, names: tuple[str, ...], asked: RequestShape) -> ReplyTemplate:
        """The reply to such a request."""
        key = (file, names, asked)
        found = self._answers.get(key)
        if found is None:
            if len(self._answers) >= _ANSWERS:
                self._answers.clear()
            found = self._answers[key] = ReplyTemplate(file, names, asked)
        return found
