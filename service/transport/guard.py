"""Identifies the caller of each call of a lane once, before the call has a handler or a message."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeAlias

import grpc
import structlog

from streamcell.service.access.checks import Check, Metadata, Peer
from streamcell.service.access.identity import ANYONE, NOBODY, Identity
from streamcell.service.errors import ServiceError, as_status

_log = structlog.get_logger(__name__)

End: TypeAlias = Callable[[grpc.StatusCode, str, Metadata], None]


class Guard:
    """The guard of a lane's calls. It lets everybody in as `ANYONE` until it is given a check.

    Attributes:
        check: the caller of a call with this metadata from this peer; raises ServiceError for a call to refuse.
        unchecked: the caller while there is no check.
    """

    def __init__(self, *, optional: bool = False) -> None:
        """`optional`: admit unknown callers as `NOBODY`."""
        self.check: Check | None = None
        self.unchecked = ANYONE
        self._optional = optional
        self._on_error: Callable[[ServiceError], None] = lambda error: None

    def ask(self, check: Check, on_error: Callable[[ServiceError], None]) -> None:
        """Check each call from now on; `on_error` is called for each refusal. Before the server starts."""
        self._on_error = on_error
        self.check = check

    def caller(self, metadata: Metadata, peer: Peer, end: End, name: str = "") -> Identity | None:
        """The caller of a call; None if it is refused, and then `end` was called. If the check has a bug, it refuses.

        `name`: the peer's, in gRPC's notation.
        """
        check = self.check
        if check is None:
            return self.unchecked
        try:
            return check(metadata, peer)
        except ServiceError as error:
            if self._optional:
                return NOBODY
            error.peer = name
            self._on_error(error)
            end(*as_status(error))
        except Exception as error:
            # Neither its text nor local variables: they may have the client's secret.
            stack = "".join(traceback.format_tb(error.__traceback__))
            _log.error("authentication failed", error=type(error).__name__, stack=stack)
            end(*as_status(ServiceError("internal error")))
        return None
