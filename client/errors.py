"""Typed errors: one class for each kind of failure, with the server's stable reason.

A server error is a gRPC status whose trailing metadata contain a `google.rpc.Status` with a `google.rpc.ErrorInfo`;
`from_rpc` makes an exception of it. docs/errors.md says what to do about each reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "streamcell"
DETAILS_KEY = "grpc-status-details-bin"
_Code = grpc.StatusCode


class StreamCellError(Exception):
    """Base of all errors that the client raises on purpose. The text says what was expected and what was found.

    Attributes:
        reason: the stable reason, such as "WRONG_DTYPE"; the name of the gRPC code if the server sent none.
        code: the gRPC status code; the server's code for this error if the client found it before sending.
        metadata: the facts of the text, for programs; values are texts.
        retry_after_s: when the server expects to have room, in seconds; None if it does not say so.
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
        self.retry_after_s: float | None = None

    def again(self) -> StreamCellError:
        """An equal error with its own traceback, to raise each time the ended session is used."""
        error = type(self)(str(self), reason=self.reason, code=self.code, metadata=self.metadata)
        error.retry_after_s = self.retry_after_s
        return error


class InvalidInput(StreamCellError, ValueError):
    """The input does not fit the model: dtype, shape, count, values or size. Sending it again fails again."""

    default_code = _Code.INVALID_ARGUMENT


class ProtocolMisuse(StreamCellError):
    """Calls in the wrong order: a step before the opening, a second opening, a `receive` without a message sent."""

    default_code = _Code.FAILED_PRECONDITION


class NotFound(StreamCellError, LookupError):
    """The server has no model or session of that name."""

    default_code = _Code.NOT_FOUND


class ModelNotFound(NotFound):
    """No model of that name, or no such version of it."""


class SessionNotFound(NotFound):
    """No live session of that id."""


class LimitReached(StreamCellError):
    """A bound of the server was reached; a later or smaller request may succeed."""

    default_code = _Code.RESOURCE_EXHAUSTED


class SessionLimit(LimitReached):
    """The model has reached its bound on live sessions."""


class MessageTooLarge(LimitReached):
    """The message exceeds the bound on bytes."""


class NotAuthenticated(StreamCellError):
    """The server requires a credential, and this client sent none, or a wrong or expired one."""

    default_code = _Code.UNAUTHENTICATED


class NotPermitted(StreamCellError):
    """The server knows the caller, who may not do this."""

    default_code = _Code.PERMISSION_DENIED


class SessionLost(StreamCellError):
    """The server ended the session; its state is gone."""

    default_code = _Code.ABORTED


class SessionExpired(SessionLost):
    """The session was idle for longer than the server's limit."""


class SessionClosed(SessionLost):
    """The session was closed by this client, or by any client's `close_session`."""


class SessionTakenOver(SessionLost):
    """Another opening with the session's token has taken it; it goes on there."""


class StateBehind(SessionLost):
    """The server's session lacks messages that this client can no longer send."""

    default_code = _Code.FAILED_PRECONDITION


class RepliesGone(StreamCellError):
    """The server no longer keeps replies that this client lacks; the session is unchanged.

    `metadata["applied"]` is the number of messages applied: a `Ticket` with that as `received` goes on without them.
    """

    default_code = _Code.FAILED_PRECONDITION


class SnapshotRefused(StreamCellError):
    """A snapshot that is damaged, signed with another key, or of another model. Nothing has changed."""

    default_code = _Code.INVALID_ARGUMENT


class Unavailable(StreamCellError, ConnectionError):
    """The server cannot be reached, or the connection was lost."""

    default_code = _Code.UNAVAILABLE


class ServerDraining(Unavailable):
    """The server is shutting down: open the session on another server, or later."""


class SessionMoved(Unavailable):
    """The session goes on with another server of its store; a client with `resume` follows it."""


class StoreUnavailable(Unavailable):
    """The shared store cannot be reached. The session is kept: resume it later."""


class DeadlineExceeded(StreamCellError, TimeoutError):
    """No answer in time. The session ends, because it is not known whether its steps were applied."""

    default_code = _Code.DEADLINE_EXCEEDED


class Cancelled(StreamCellError):
    """The call was cancelled."""

    default_code = _Code.CANCELLED


class ServerFault(StreamCellError):
    """A fault of the server, such as a failed run of the model."""

    default_code = _Code.INTERNAL


class RowsRefused(StreamCellError):
    """Some rows of a pool's frame were refused; the others ran, and the pool stays open.

    Attributes:
        outputs: the frame's outputs, with zeros in the refused rows.
        errors: the error of each refused row, by member.
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
        """An equal error with its own traceback."""
        return RowsRefused(self.errors, self.outputs)


_BY_REASON: dict[str, type[StreamCellError]] = {
    "NOT_OPEN": ProtocolMisuse,
    "ALREADY_OPEN": ProtocolMisuse,
    "MODEL_NOT_FOUND": ModelNotFound,
    "VERSION_NOT_FOUND": ModelNotFound,
    "SESSION_NOT_FOUND": SessionNotFound,
    "UNKNOWN_HANDLE": SessionNotFound,
    "NOT_SUPPORTED": ProtocolMisuse,
    "SNAPSHOT_MISMATCH": SnapshotRefused,
    "SNAPSHOT_INVALID": SnapshotRefused,
    "SESSION_TAKEN_OVER": SessionTakenOver,
    "STATE_BEHIND": StateBehind,
    "REPLIES_GONE": RepliesGone,
    "SESSION_LIMIT": SessionLimit,
    "MESSAGE_TOO_LARGE": MessageTooLarge,
    "STORED_STATE_INVALID": SessionLost,
    "SESSION_EXPIRED": SessionExpired,
    "SESSION_CLOSED": SessionClosed,
    "SERVER_DRAINING": ServerDraining,
    "SESSION_MOVED": SessionMoved,
    "SESSION_ELSEWHERE": SessionMoved,
    "STORE_UNAVAILABLE": StoreUnavailable,
}

# For reasons that this client does not know, and for statuses that no StreamCell server sent.
_BY_CODE: dict[grpc.StatusCode, type[StreamCellError]] = {
    kind.default_code: kind
    for kind in (
        InvalidInput, ProtocolMisuse, NotFound, LimitReached, SessionLost, Unavailable, DeadlineExceeded,
        Cancelled, ServerFault, NotAuthenticated, NotPermitted,
    )
}  # fmt: skip
_CODES = {code.value[0]: code for code in _Code}


# HTTP's status for it, as gRPC tells it.
_TOO_LARGE = "http2 header with status: 413"


class Status(Protocol):
    """A finished call's status: the common part of `grpc.Call`, its errors and `grpc.aio.AioRpcError`."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


# What to say about a code and a text that gRPC, a proxy or the network made: `Route.explain`.
Explain: TypeAlias = Callable[[grpc.StatusCode, str], str]


def from_rpc(status: Status, explain: Explain | None = None) -> StreamCellError:
    """The exception for a call that ended with an error status."""
    return from_status(status.code(), status.details() or "", status.trailing_metadata() or (), explain)


def from_status(
    code: grpc.StatusCode,
    text: str,
    trailing: Iterable[tuple[str, str | bytes]],
    explain: Explain | None = None,
) -> StreamCellError:
    """The exception for an error status: its class follows from the rich status's reason, or else from the code."""
    info, retry_after_s = _details(trailing)
    if info is not None:
        error = from_reason(code, info.reason, text, info.metadata)
        error.retry_after_s = retry_after_s
        return error
    # gRPC's own limit, at either end; or the limit of a proxy between.
    large = (code is _Code.RESOURCE_EXHAUSTED and "larger than max" in text) or _TOO_LARGE in text
    text = explain(code, text) if explain is not None else f"{text or 'no details'} ({code.name})"
    if large:
        return MessageTooLarge(text, reason="MESSAGE_TOO_LARGE", code=code)
    return _BY_CODE.get(code, StreamCellError)(text, code=code)


def from_number(number: int, reason: str, text: str, metadata: Mapping[str, str]) -> StreamCellError:
    """The exception for a refusal within a reply, which has its gRPC code as a number."""
    return from_reason(_CODES.get(number, _Code.UNKNOWN), reason, text, metadata)


def from_reason(
    code: grpc.StatusCode, reason: str, text: str, metadata: Mapping[str, str]
) -> StreamCellError:
    """The exception for a server's reason; its class follows from the code if this client does not know the reason."""
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, StreamCellError)
    return kind(text, reason=reason, code=code, metadata=metadata)


def _details(
    trailing: Iterable[tuple[str, str | bytes]],
) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    """The rich status's reason, and in how many seconds to try again; None for each that it does not have."""
    for key, value in trailing:
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        rich = status_pb2.Status()
        found: error_details_pb2.ErrorInfo | None = None
        retry_after_s: float | None = None
        try:
            rich.ParseFromString(value)
            for detail in rich.details:
                info, wait = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if found is None and detail.Unpack(info) and info.domain == DOMAIN:
                    found = info
                elif detail.Unpack(wait) and wait.HasField("retry_delay"):
                    retry_after_s = wait.retry_delay.ToNanoseconds() / 1e9
        except DecodeError:  # a proxy or another library wrote these bytes: use the plain status
            return None, None
        return found, retry_after_s
    return None, None
