"""The errors of sessions in a shared store, and of the store itself."""

from __future__ import annotations

import grpc

from streamcell.service.errors import ServiceError


class SessionMoved(ServiceError):
    """Another replica has the session, or may have it: it goes on there."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "SESSION_MOVED"


class SessionElsewhere(ServiceError):
    """Another replica has the session and did not give it away in time."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "SESSION_ELSEWHERE"


class StoreUnavailable(ServiceError):
    """The store does not answer, or refuses; nothing is known of the session, and nothing of it is lost."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"


class StoredStateInvalid(ServiceError):
    """The store has something under the session's name that this replica did not write or cannot read."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "STORED_STATE_INVALID"


# What can be wrong with a store, for its metric.
UNREACHABLE, TIMEOUT, REFUSED, FULL, FAILED, NO_REPLICA = KINDS = (
    "unreachable",
    "timeout",
    "refused",
    "full",
    "failed",
    "no_replica",
)


class StoreFailure(Exception):
    """A call of the store failed. `kind`: one of `KINDS`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class StoreConfigError(OSError):
    """The store cannot be used as it is configured; the text says what to change."""
