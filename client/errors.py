"""Typed errors: one class for each kind of failure, each with the server's stable reason.

A server error is a gRPC status whose trailing metadata hold a `google.rpc.Status` with a `google.rpc.ErrorInfo`;
`from_rpc` turns one into an exception. docs/errors.md says what to do about each reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "streamcell"
DETAILS_KEY = "grpc-status-details-bin"
_Code = grpc.StatusCode


class StreamCellError(Exception):
    """Base of everything that the client raises on purpose. The text says what was expected and what came.

    Attributes:
        reason: the stable reason, such as "WRONG_DTYPE"; the name of the gRPC code if the server gave none.
        code: the gRPC status code; for an error found before anything was sent, the one the server would use.
        metadata: the same facts for programs, as text.
    """

    default_code: ClassVar[grpc.StatusCode] = _Code.UNKNOWN

    def __init__(
        self,
        text: str,
        *,
        reason: str = "",
        code: grpc.StatusCode | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code or self.default_code
        self.reason = reason or self.code.name
        self.metadata = dict(metadata or {})

    def again(self) -> StreamCellError:
        """An equal error with a traceback of its own, to raise when the ended session is used again."""
        return type(self)(str(self), reason=self.reason, code=self.code, metadata=self.metadata)


class InvalidInput(StreamCellError, ValueError):
    """This input does not fit the model: dtype, shape, count, values or size. Sending it again will not help."""

    default_code = _Code.INVALID_ARGUMENT


class ProtocolMisuse(StreamCellError):
    """Calls in a wrong order: a step before the opening, a second opening, a `receive` without a message sent."""

    default_code = _Code.FAILED_PRECONDITION


class NotFound(StreamCellError, LookupError):
    """The server has no such thing."""

    default_code = _Code.NOT_FOUND


class ModelNotFound(NotFound):
    """No model of that name, or not in that version."""


class SessionNotFound(NotFound):
    """No live session of that id."""


class LimitReached(StreamCellError):
    """A bound of the server's; later or smaller may work."""

    default_code = _Code.RESOURCE_EXHAUSTED


class SessionLimit(LimitReached):
    """The model has as many live sessions as it may have."""


class MessageTooLarge(LimitReached):
    """The message has more bytes than one message may have."""


class SessionLost(StreamCellError):
    """The server ended the session; its state is gone."""

    default_code = _Code.ABORTED


class SessionExpired(SessionLost):
    """Idle for longer than the server keeps a session."""


class SessionClosed(SessionLost):
    """Closed: by this client, or by another through `close_session`."""


class Unavailable(StreamCellError, ConnectionError):
    """The server cannot be reached, or the connection broke."""

    default_code = _Code.UNAVAILABLE


class ServerDraining(Unavailable):
    """The server is shutting down: open elsewhere, or later."""


class DeadlineExceeded(StreamCellError, TimeoutError):
    """No answer in time. Whether the steps were applied is not known, so a session ends with it."""

    default_code = _Code.DEADLINE_EXCEEDED


class Cancelled(StreamCellError):
    """The call was cancelled."""

    default_code = _Code.CANCELLED


class ServerFault(StreamCellError):
    """The server's own failure, such as a model's run that failed."""

    default_code = _Code.INTERNAL


class RowsRefused(StreamCellError):
    """Some rows of a pool's frame were refused; the others ran, and the pool lives on.

    Attributes:
        outputs: the frame's outputs, with zeros in the rows that were refused.
        errors: why each refused row was refused, by member.
    """

    default_code = _Code.INVALID_ARGUMENT

    def __init__(self, errors: Mapping[int, StreamCellError], outputs: Any) -> None:
        member, first = next(iter(errors.items()))
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(
            f"member {member}: {first}{more}", reason=first.reason, code=first.code, metadata=first.metadata
        )
        self.errors = dict(errors)
        self.outputs = outputs

    def again(self) -> RowsRefused:
        """An equal error with a traceback of its own."""
        return RowsRefused(self.errors, self.outputs)


_BY_REASON: dict[str, type[StreamCellError]] = {
    "NOT_OPEN": ProtocolMisuse,
    "ALREADY_OPEN": ProtocolMisuse,
    "MODEL_NOT_FOUND": ModelNotFound,
    "VERSION_NOT_FOUND": ModelNotFound,
    "SESSION_NOT_FOUND": SessionNotFound,
    "UNKNOWN_HANDLE": SessionNotFound,
    "NOT_SUPPORTED": ProtocolMisuse,
    "SESSION_LIMIT": SessionLimit,
    "MESSAGE_TOO_LARGE": MessageTooLarge,
    "SESSION_EXPIRED": SessionExpired,
    "SESSION_CLOSED": SessionClosed,
    "SERVER_DRAINING": ServerDraining,
}

# For reasons that this client does not know, and for statuses that no StreamCell server wrote.
_BY_CODE: dict[grpc.StatusCode, type[StreamCellError]] = {
    kind.default_code: kind
    for kind in (
        InvalidInput, ProtocolMisuse, NotFound, LimitReached, SessionLost, Unavailable, DeadlineExceeded,
        Cancelled, ServerFault,
    )
}  # fmt: skip


class Status(Protocol):
    """How a finished call ended: what `grpc.Call`, its errors and `grpc.aio.AioRpcError` have in common."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def from_rpc(status: Status) -> StreamCellError:
    """The exception for a call that ended with an error status."""
    return from_status(status.code(), status.details() or "", status.trailing_metadata() or ())


def from_status(
    code: grpc.StatusCode, text: str, trailing: Iterable[tuple[str, str | bytes]]
) -> StreamCellError:
    """The exception for an error status: its class by the reason in the rich status, or else by the code."""
    info = _error_info(trailing)
    if info is not None:
        return from_reason(code, info.reason, text, info.metadata)
    text = f"{text or 'no details'} ({code.name})"
    if code is _Code.RESOURCE_EXHAUSTED and "larger than max" in text:  # gRPC's own limit, either side
        return MessageTooLarge(text, reason="MESSAGE_TOO_LARGE", code=code)
    return _BY_CODE.get(code, StreamCellError)(text, code=code)


def from_reason(
    code: grpc.StatusCode, reason: str, text: str, metadata: Mapping[str, str]
) -> StreamCellError:
    """The exception for a reason of the server's; by the code if this client does not know it."""
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, StreamCellError)
    return kind(text, reason=reason, code=code, metadata=metadata)


def _error_info(trailing: Iterable[tuple[str, str | bytes]]) -> error_details_pb2.ErrorInfo | None:
    for key, value in trailing:
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        rich = status_pb2.Status()
        info = error_details_pb2.ErrorInfo()
        try:
            rich.ParseFromString(value)
            for detail in rich.details:
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return info
        except DecodeError:  # a proxy's or another library's bytes: the plain status stands
            return None
    return None
