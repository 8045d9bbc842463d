"""Every error a client can meet: one class a reason, each with its gRPC status code.

`docs/errors.md` says what a client should do about each. `as_status` is the one place that turns an error into
what goes on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import grpc
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "streamcell"
Metadata = tuple[tuple[str, str | bytes], ...]

_SHOWN = 120  # characters of a client's text that an error quotes
# The prefix of ONNX Runtime's messages: its codes, and a place in its source with the condition that it checks.
_CODES = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"^\S+:\d+ (?:.*? was false\. *|\S+ .*?\) (?=[A-Z\[]))?")
_NODE = re.compile(r"while running (\S+) node\. Name:'([^']*)' Status Message: ")
# Bytes of an error's whole text. It is sent twice, once with three bytes for each, and gRPC's clients take 8 KiB.
_TEXT_BYTES = 1024


def cut(value: object) -> str:
    """`value` as a text of at most 120 characters, for values that a client sent."""
    if isinstance(value, Sequence) and len(value) > _SHOWN:
        value = value[: _SHOWN + 1]  # avoids formatting a text of megabytes
    text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def shown(value: str) -> str:
    """A client's text, quoted as Python quotes it and cut as `cut` does."""
    return cut(repr(value[: _SHOWN + 1]))


def run_error_text(error: Exception) -> str:
    """ONNX Runtime's message of a failed run in one line, without path, line and condition of its source."""
    text = _CODES.sub("", " ".join(str(error).rpartition("Status Message: ")[2].split()))
    return _SOURCE.sub("", text) or text


def node_error_text(error: Exception) -> str:
    """The same with the node that failed before it, if ONNX Runtime names one."""
    node = _NODE.search(str(error))
    return run_error_text(error) if node is None else f"{node[1]} {shown(node[2])}: {run_error_text(error)}"


def _bounded(text: str) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= _TEXT_BYTES:
        return text
    return encoded[: _TEXT_BYTES - 3].decode(errors="ignore") + "…"


class ServiceError(Exception):
    """Base of all typed errors. The text says what was expected and what was found; `facts` has the same for programs.

    Both are bounded here: a text to 1,024 bytes, a fact to 120 characters. Use `cut` or `shown` to put a
    client's text into an error's text, or it may push the remedy out.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    # Who gets it, for the audit log: the client in gRPC's notation, its tenant, its subject; empty: not known.
    peer: str = ""
    tenant: str = ""
    subject: str = ""
    more: Sequence[Any] = ()  # further details of the rich status

    def __init__(self, text: str, **facts: object) -> None:
        super().__init__(_bounded(text))
        self.facts = {key: cut(value) for key, value in facts.items()}


def retry_after(seconds: float) -> error_details_pb2.RetryInfo:
    """A detail of an error: clients may try again after so many seconds."""
    wait = error_details_pb2.RetryInfo()
    wait.retry_delay.FromNanoseconds(round(seconds * 1e9))
    return wait


class Addressed(Protocol):
    """A call, as far as an error needs it; `caller`: tenant, subject, and whether it is an operator."""

    peer: str
    caller: Any


def addressed(error: ServiceError, call: Addressed) -> ServiceError:
    """Note in `error` whose call gets it."""
    error.peer = call.peer
    error.tenant, error.subject, _ = call.caller
    return error


class InvalidArgument(ServiceError):
    """The client sent something that this model cannot take."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class MalformedMessage(InvalidArgument):
    reason = "MALFORMED_MESSAGE"


class WrongDtype(InvalidArgument):
    reason = "WRONG_DTYPE"


class WrongInputCount(InvalidArgument):
    reason = "WRONG_INPUT_COUNT"


class WrongByteCount(InvalidArgument):
    reason = "WRONG_BYTE_COUNT"


class WrongShape(InvalidArgument):
    reason = "WRONG_SHAPE"


class WrongContents(InvalidArgument):
    """Typed contents that do not fit the tensor."""

    reason = "WRONG_CONTENTS"


class WrongParameter(InvalidArgument):
    """A request's parameter is of a wrong type, unknown, or makes no sense."""

    reason = "WRONG_PARAMETER"


class UnknownOutput(InvalidArgument):
    reason = "UNKNOWN_OUTPUT"


class NotSupported(ServiceError):
    """A part of the Open Inference Protocol that this server does not have."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "NOT_SUPPORTED"


class SequenceNotStarted(InvalidArgument):
    """A request of a sequence that no request has started."""

    reason = "SEQUENCE_NOT_STARTED"


class MissingOpenInput(InvalidArgument):
    """A session of this model is given a value when it opens, and none came."""

    reason = "OPEN_INPUT_MISSING"


class UnknownOpenInput(InvalidArgument):
    """A value for an input that this model's sessions are not given when they open."""

    reason = "OPEN_INPUT_UNKNOWN"


class NonFiniteInput(InvalidArgument):
    reason = "NON_FINITE_INPUT"


class IndexOutOfRange(InvalidArgument):
    """A value that is no index of the table in which the model looks it up."""

    reason = "INDEX_OUT_OF_RANGE"


class TooManySteps(InvalidArgument):
    reason = "TOO_MANY_STEPS"


class TooManyRows(InvalidArgument):
    reason = "TOO_MANY_ROWS"


class NoSteps(InvalidArgument):
    reason = "NO_STEPS"


class BadGeneration(InvalidArgument):
    """A generation that contradicts the model's card, itself, or a limit."""

    reason = "BAD_GENERATION"

    @classmethod
    def nothing(cls) -> BadGeneration:
        """The session has no output from which a first input could be made."""
        return cls(
            "cannot generate yet: the session has no output. Send a first input in this message, or run steps before it"
        )


class GenerationUnsupported(ServiceError):
    """The model's card does not say how an output becomes the next input."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "GENERATION_UNSUPPORTED"


class RefusedByModel(InvalidArgument):
    """The model cannot run these values, such as a token that its embedding does not have."""

    reason = "REFUSED_BY_MODEL"

    @classmethod
    def because(cls, error: Exception, what: str = "message") -> ServiceError:
        """The error with ONNX Runtime's message, without path and line; a `RunTimeout` is returned as it is."""
        if isinstance(error, RunTimeout):
            return run_failure(error)
        text = run_error_text(error)
        return cls(f"the model cannot run this {what}: {text}", model_error=text)


class NotOpen(ServiceError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOT_OPEN"


class AlreadyOpen(ServiceError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "ALREADY_OPEN"


class NotFound(ServiceError):
    code = grpc.StatusCode.NOT_FOUND


class ModelNotFound(NotFound):
    reason = "MODEL_NOT_FOUND"


class VersionNotFound(NotFound):
    reason = "VERSION_NOT_FOUND"


class SessionNotFound(NotFound):
    reason = "SESSION_NOT_FOUND"


class UnknownService(NotFound):
    """A health check names something that is not served here."""

    reason = "UNKNOWN_SERVICE"


class UnknownHandle(NotFound):
    """A frame names a session that its stream does not have."""

    reason = "UNKNOWN_HANDLE"


class DuplicateHandle(InvalidArgument):
    """A frame names a session twice; only the first row runs."""

    reason = "DUPLICATE_HANDLE"


class SequenceGap(ServiceError):
    """A step behind a refused one, which the client may have sent before it knew of the refusal."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "SEQUENCE_GAP"


class SessionLimit(ServiceError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "SESSION_LIMIT"


class MessageTooLarge(ServiceError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "MESSAGE_TOO_LARGE"


class ControlBusy(ServiceError):
    """Many calls that list things are waiting to be answered."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "CONTROL_BUSY"


class ReflectionLimit(ServiceError):
    """The bound on running reflection calls is reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "REFLECTION_LIMIT"


class NoMessage(ServiceError):
    """A call whose client sends no message in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "NO_MESSAGE"


class MemoryInFlight(ServiceError):
    """A connection has more in the server's memory than it may: half-received messages, queued work, unread replies."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "MEMORY_IN_FLIGHT"


class SessionExpired(ServiceError):
    """The session was idle for longer than the server's limit; its state is gone."""

    code = grpc.StatusCode.ABORTED
    reason = "SESSION_EXPIRED"


class SessionClosed(ServiceError):
    """The session was closed with `CloseSession`; its state is gone."""

    code = grpc.StatusCode.ABORTED
    reason = "SESSION_CLOSED"


class ServerDraining(ServiceError):
    """The server is shutting down: open elsewhere, or later."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "SERVER_DRAINING"


class ModelUnloading(ServiceError):
    """The model is being unloaded and takes no new sessions."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "MODEL_UNLOADING"


class ModelReplaced(ServiceError):
    """A stream of frames is open on a model that the server has replaced, and opens no more sessions on it."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "MODEL_REPLACED"


class ModelUnloaded(ServiceError):
    """The model was unloaded while the session was live; its state is gone."""

    code = grpc.StatusCode.ABORTED
    reason = "MODEL_UNLOADED"


class EngineLost(ServiceError):
    """The process that ran the models has died and is being restarted; states outside a journal are lost."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "ENGINE_LOST"


class EngineFailed(ServiceError):
    """The model's run failed; no step of the message was applied."""

    reason = "ENGINE_FAILED"


class RunTimeout(ServiceError):
    """A run of the model took longer than this server allows, and was ended."""

    reason = "RUN_TIMEOUT"

    @classmethod
    def after(cls, limit_s: float) -> RunTimeout:
        """The one error of all sessions of the run."""
        return cls(
            f"the model's run took longer than {limit_s:g} s and was ended; the session has ended with it",
            limit_s=f"{limit_s:g}",
        )


def run_failure(cause: Exception) -> ServiceError:
    """The error for a session whose run failed for `cause` and is not repeated."""
    if isinstance(cause, RunTimeout):
        return RunTimeout(str(cause), **cause.facts)
    if isinstance(cause, EngineFailed):
        return EngineFailed(str(cause), **cause.facts)
    return EngineFailed("the model's run failed; no step of this message was applied")


def as_status(error: ServiceError) -> tuple[grpc.StatusCode, str, Metadata]:
    """`error` as a status code, its details, and the trailing metadata with the rich status."""
    text = str(error)
    rich = status_pb2.Status(code=error.code.value[0], message=text)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.facts)
    for detail in (info, *error.more):
        rich.details.add().Pack(detail)
    return error.code, text, (("grpc-status-details-bin", rich.SerializeToString()),)
