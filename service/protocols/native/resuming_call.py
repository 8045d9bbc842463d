"""The common part of calls on sessions and streams that outlive them: see `resumable.py`."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from streamcell.service.access.pacing import Pace
from streamcell.service.batching.inline import AfterArrivals
from streamcell.service.errors import MalformedMessage, addressed, as_status
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.sessions.resume_errors import DurabilityUnsupported
from streamcell.service.transport.calls import Call

from .resumable import Resumable

R = TypeVar("R", bound=Resumable)


class ResumingCall(Generic[R]):
    """A call's handler. Messages go to the session as long as no later call has taken it.

    Attributes:
        session: set by the opening, until the call is over.
        next: number of the next message; 0: none may come before the opening is answered.
        over: the call has ended.
    """

    # The answer to the opening may be several replies. If replies to messages of earlier calls may come unasked behind
    # it, the opening calls `read_on`: tracing must not take these for answers to its own messages.
    sends_again: ClassVar[bool] = True

    __slots__ = (
        "_asks_store", "_context", "_finished", "_pace", "after_arrivals", "call", "half_closed", "next", "over",
        "session",
    )  # fmt: skip

    def __init__(self, call: Call, context: CallContext[Any]) -> None:
        self.call = call
        self.after_arrivals: AfterArrivals | None = call.run_after_arrivals
        self._context = context
        self.session: R | None = None
        self.next = 0
        self.half_closed = self._finished = self.over = False
        self._asks_store = False  # its opening waits for the store
        self._pace = None if context.grant is None else Pace(context.grant.spend, call.resume)

    def check_kept(self) -> None:
        """Raise DurabilityUnsupported if this server keeps nothing without its stream."""
        if self._context.kept is None or not self._context.sessions.linger_s:
            raise DurabilityUnsupported(
                "this server keeps no session without its stream (--linger-s 0): open one without `session`"
            )

    def may_send(self) -> bool:
        """True if a message may arrive now; else the call ends, because its client should have waited."""
        if not self.next:
            error = _early()
            addressed(error, self.call)
            self._context.metrics.error(error)
            self.call.end(*as_status(error))
            return False
        return True

    def on_half_close(self) -> None:
        """The client sends no more messages: end once the last reply is sent."""
        self.half_closed = True
        if self.session is not None:
            self.session.finish_if_done(self)
        elif not self._asks_store:
            self.call.end()

    def finish(self) -> None:
        """End the call: the client has half-closed, and every message is answered. The session ends in `on_end`."""
        self._finished = True
        self.call.end()

    def on_end(self, cancelled: bool) -> None:
        """The call is over. The session ends with a call that its client has finished; else it is detached."""
        if self._pace is not None:
            self._pace.end()
        self.over = True
        session, self.session = self.session, None
        if session is not None:
            session.left(self, finished=self._finished and not cancelled)


def _early() -> MalformedMessage:
    return MalformedMessage(
        "a message before the reply to the opening may be one that the session has: wait for the reply, or name its "
        "number in `first`"
    )
