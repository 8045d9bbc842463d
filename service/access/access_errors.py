"""The errors for unknown callers, forbidden calls and exceeded quotas."""

from __future__ import annotations

import grpc

from streamcell.service.errors import ServiceError, retry_after


class AccessConfigError(OSError):
    """A file or an address that access depends on cannot be used; the text names it."""


class NotAuthenticated(ServiceError):
    """The call proves no identity: it has no token, or one that this server does not accept."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "NOT_AUTHENTICATED"


class TokenExpired(NotAuthenticated):
    """The token has expired; the caller needs a new one."""

    reason = "TOKEN_EXPIRED"


class NotPermitted(ServiceError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "NOT_PERMITTED"


class QuotaExceeded(ServiceError):
    """The caller's tenant uses as much as it may; `retry_s` is when it may have room again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUOTA_EXCEEDED"

    def __init__(self, text: str, retry_s: float = 1.0, **facts: object) -> None:
        super().__init__(text, **facts)
        self.more = (retry_after(retry_s),)
