"""Statuses become typed errors: by the reason, else by the code, and never by accident."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import streamcell.service  # noqa: F401  # defines errors outside its errors module, too
from streamcell.client import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    LimitReached,
    MessageTooLarge,
    ModelNotFound,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    ProtocolMisuse,
    ServerDraining,
    ServerFault,
    SessionClosed,
    SessionExpired,
    SessionLimit,
    SessionLost,
    SessionNotFound,
    StreamCellError,
    Unavailable,
)
from streamcell.client.errors import DETAILS_KEY, from_status
from streamcell.service import errors as service_errors

Code = grpc.StatusCode
ROOT = Path(__file__).parents[2]


def rich(reason: str, domain: str = "streamcell", **facts: str) -> tuple[tuple[str, bytes], ...]:
    status = status_pb2.Status(code=3, message="text")
    status.details.add().Pack(error_details_pb2.RetryInfo())  # others' details are no obstacle
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=facts))
    return (("x-other", b"1"), (DETAILS_KEY, status.SerializeToString()))


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", InvalidInput),
        (Code.INVALID_ARGUMENT, "WRONG_DTYPE", InvalidInput),
        (Code.INVALID_ARGUMENT, "WRONG_INPUT_COUNT", InvalidInput),
        (Code.INVALID_ARGUMENT, "WRONG_BYTE_COUNT", InvalidInput),
        (Code.INVALID_ARGUMENT, "NON_FINITE_INPUT", InvalidInput),
        (Code.INVALID_ARGUMENT, "TOO_MANY_STEPS", InvalidInput),
        (Code.INVALID_ARGUMENT, "NO_STEPS", InvalidInput),
        (Code.FAILED_PRECONDITION, "NOT_OPEN", ProtocolMisuse),
        (Code.FAILED_PRECONDITION, "ALREADY_OPEN", ProtocolMisuse),
        (Code.NOT_FOUND, "MODEL_NOT_FOUND", ModelNotFound),
        (Code.NOT_FOUND, "VERSION_NOT_FOUND", ModelNotFound),
        (Code.NOT_FOUND, "SESSION_NOT_FOUND", SessionNotFound),
        (Code.RESOURCE_EXHAUSTED, "SESSION_LIMIT", SessionLimit),
        (Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", MessageTooLarge),
        (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", LimitReached),
        (Code.ABORTED, "SESSION_EXPIRED", SessionExpired),
        (Code.ABORTED, "SESSION_CLOSED", SessionClosed),
        (Code.UNAVAILABLE, "SERVER_DRAINING", ServerDraining),
        (Code.INTERNAL, "ENGINE_FAILED", ServerFault),
        (Code.INTERNAL, "INTERNAL", ServerFault),
        (Code.ABORTED, "A_REASON_OF_TOMORROW", SessionLost),
        (Code.UNAUTHENTICATED, "NOT_AUTHENTICATED", NotAuthenticated),
        (Code.UNAUTHENTICATED, "TOKEN_EXPIRED", NotAuthenticated),
        (Code.PERMISSION_DENIED, "NOT_PERMITTED", NotPermitted),
        (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", LimitReached),
        (Code.DATA_LOSS, "A_REASON_OF_TOMORROW", StreamCellError),
    ],
)
def test_the_reason_names_the_class(code: Code, reason: str, kind: type[StreamCellError]) -> None:
    error = from_status(code, "expected a, got b", rich(reason, expected="a"))
    assert type(error) is kind
    assert (str(error), error.reason, error.code) == ("expected a, got b", reason, code)
    assert error.metadata == {"expected": "a"}
    again = error.again()
    assert again is not error
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.UNAVAILABLE, Unavailable),
        (Code.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Code.CANCELLED, Cancelled),
        (Code.NOT_FOUND, NotFound),
        (Code.UNIMPLEMENTED, StreamCellError),
        (Code.RESOURCE_EXHAUSTED, LimitReached),
    ],
)
def test_without_a_reason_of_ours_the_code_names_it(code: Code, kind: type[StreamCellError]) -> None:
    for trailing in ((), rich("SESSION_EXPIRED", domain="other.example"), ((DETAILS_KEY, b"\xff\xff"),)):
        error = from_status(code, "refused", trailing)
        assert type(error) is kind
        assert (error.reason, error.metadata) == (code.name, {})
        assert str(error) == f"refused ({code.name})"


def test_errors_are_also_pythons_own_where_it_has_them() -> None:
    assert issubclass(InvalidInput, ValueError)
    assert issubclass(NotFound, LookupError)
    assert issubclass(Unavailable, ConnectionError)
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert issubclass(SessionExpired, SessionLost)
    assert issubclass(ServerDraining, Unavailable)


def _service_errors() -> list[type[service_errors.ServiceError]]:
    """Every class that has a reason of its own, wherever in the service it is defined."""
    found, kinds = [], [service_errors.ServiceError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if "reason" in vars(kind):
            found.append(kind)
    return found


def test_every_error_that_the_server_sends_is_decoded_and_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    documented = dict(re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|", page, re.MULTILINE))
    kinds = _service_errors()
    assert len(kinds) > 15
    for kind in kinds:
        decoded = from_status(*service_errors.as_status(kind("expected a, got b", got="b")))
        assert (decoded.reason, decoded.metadata) == (kind.reason, {"got": "b"})
        assert type(decoded) is not StreamCellError
        assert documented.get(kind.reason) == kind.code.name, f"docs/errors.md lacks {kind.reason}"


def test_every_reason_of_the_clients_own_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "client").rglob("*.py"))
    reasons = set(re.findall(r'reason="([A-Z_]+)"', sources))
    assert len(reasons) > 8
    assert {reason for reason in reasons if f"`{reason}`" not in page} == set()
