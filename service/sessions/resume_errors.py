"""The errors of openings that resume a session."""

from __future__ import annotations

import grpc

from streamcell.service.errors import ServiceError


class SessionTakenOver(ServiceError):
    """A later opening has taken the session: a stream that had it, or an opening that arrives too late."""

    code = grpc.StatusCode.ABORTED
    reason = "SESSION_TAKEN_OVER"


class StateBehind(ServiceError):
    """The session's state is older than the first message that the client can still send."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "STATE_BEHIND"


class RepliesGone(ServiceError):
    """The server no longer has a reply that the client lacks; the session is unchanged."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "REPLIES_GONE"


class DurabilityUnsupported(ServiceError):
    """The server cannot keep a session as the client needs it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "DURABILITY_UNSUPPORTED"
