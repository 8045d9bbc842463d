"""A streaming call and its session. When either ends, the other ends too."""

from __future__ import annotations

from typing import Generic, TypeVar

from streamcell.service.access.pacing import Pace
from streamcell.service.errors import ServiceError, addressed, as_status
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import check_size
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.session import Output
from streamcell.service.sessions.table import Live
from streamcell.service.transport.calls import Call

M = TypeVar("M", bound=Model)


class CallSession(Generic[M]):
    """The call's handler, called on grpcio's thread, and the session's listener, called on the engine's.

    `_submitted` is written by the first thread only and `_answered` by the second only, so the end of a
    half-closed stream is noticed by the later of the two.
    """

    __slots__ = (
        "_answered", "_call", "_context", "_finished", "_greeting", "_half_closed", "_live", "_output", "_over",
        "_pace", "_submitted",
    )  # fmt: skip

    def __init__(self, call: Call, context: CallContext[M]) -> None:
        self._call = call
        self._context = context
        self._live: Live[M] | None = None
        self._greeting = b""  # a serialised response, which goes out with the first reply
        self._output = Output.ALL
        self._submitted = self._answered = 0  # messages
        self._half_closed = self._finished = self._over = False
        self._pace = None if context.grant is None else Pace(context.grant.spend, call.resume)

    # The call's side

    def on_message(self, data: bytes) -> bool:
        """Take one message; False if the stream should not be read further."""
        try:
            check_size(data, self._context.limits)
            return self._take(data)
        except ServiceError as error:
            self.fail(error)
            return False

    def _take(self, data: bytes) -> bool:
        """As `on_message`, for one that is not too large; raises ServiceError."""
        raise NotImplementedError

    def on_half_close(self) -> None:
        """The client sends no more messages: end once the last reply is sent."""
        self._half_closed = True
        self._finish_if_done()

    def on_end(self, cancelled: bool) -> None:
        """The call is over, however it ended."""
        # The session refers to its listener: dropping it here breaks the cycle.
        live, self._live = self._live, None
        self._over = True
        if self._pace is not None:
            self._pace.end()
        if live is None:
            return
        if self._finished:
            reason = "cancelled" if cancelled else "closed"
            live.model.metrics.session_ended(reason, live.session.members)
        else:
            self._context.sessions.end(live, self._call.gone)

    # The session's side

    def resume(self) -> None:
        """Resume reading: the queue has room."""
        if self._pace is None or self._pace.may_resume():
            self._call.resume()

    def fail(self, error: ServiceError) -> None:
        """End the session and the call with a typed error. Later ends are ignored."""
        if self._over:
            return
        live = self._live
        if live is None or self._context.sessions.end(live, error.reason.lower()):
            self._context.metrics.error(addressed(error, self._call))
            if live is not None:
                live.model.metrics.request_failed(error)
            self._call.end(*as_status(error))

    def _greeted(self, reply: bytes) -> bytes:
        """`reply`, with the greeting if it is the first. Concatenated messages merge: protobuf's own rule."""
        greeting, self._greeting = self._greeting, b""
        return greeting + reply if greeting else reply

    def _was_answered(self) -> None:
        """Note that a message has had its last reply."""
        self._answered += 1
        if self._half_closed:
            self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._answered < self._submitted:
            return
        live = self._live
        if live is None or self._context.sessions.release(live):
            # Counted in `on_end`: a call that looks half-closed may have been cancelled.
            self._finished = True
            self._call.end()
