"""One `Stream` call on a resumable session. The session outlives it: see `resumable.py`."""

from __future__ import annotations

import time
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.errors import (
    AlreadyOpen,
    MalformedMessage,
    ServiceError,
    SessionNotFound,
    as_status,
)
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import (
    check_size,
    count_steps,
    fast_path_limits,
    make_work,
    output_mode,
)
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.resume_errors import DurabilityUnsupported
from streamcell.service.sessions.session import Work
from streamcell.service.sessions.table import not_found
from streamcell.service.transport.calls import Call

from .generation_requests import check_stop, make_generating
from .openings import Resume, check_open
from .resumable import Resumable
from .wire import only_input

M = TypeVar("M", bound=Model)


class ResumableStream(Generic[M]):
    """A call's handler. Messages go to the session as long as no later call has taken it."""

    __slots__ = (
        "_context",
        "_few_steps",
        "_finished",
        "_session",
        "_step_bytes",
        "call",
        "half_closed",
        "next",
    )

    def __init__(self, call: Call, context: CallContext[M]) -> None:
        self.call = call
        self._context = context
        self._session: Resumable | None = None
        self.next = 0  # number of the next message; 0: none may come before the opening is answered
        self._step_bytes = self._few_steps = 0  # see `fast_path_limits`
        self.half_closed = self._finished = False

    def begin(self, request: pb.StreamRequest) -> bool:
        """Take the opening: create the session, or attach to it. The session answers once it is at rest.

        Raises:
            MalformedMessage, DurabilityUnsupported: as `Resume.of`.
            SessionNotFound: there is no such session, or it has another token.
            SessionTakenOver: a later opening has been taken.
            SessionLimit, ModelNotFound, …: it cannot be created.
        """
        asked = Resume.of(request)
        context = self._context
        if context.kept is None or not context.sessions.linger_s:
            raise DurabilityUnsupported(
                "this server keeps no session without its stream (--linger-s 0): open one without `session`"
            )
        try:
            session = self._find(asked)
        except SessionNotFound:
            if asked.must_exist:
                raise
            model, opening = check_open(request.open, context)
            session = Resumable.create(asked, model, opening, context, request.open, self.call.peer)
        self._session = session
        self.next = asked.first
        self._step_bytes, self._few_steps = fast_path_limits(session.live.model, context.limits)
        signature = session.live.model.file.signature
        self._few_steps = session.place.most_steps(signature, session.output, self._few_steps)
        session.attach(self, asked)
        return True

    def _find(self, asked: Resume) -> Resumable:
        listener = self._context.sessions.claim(asked.session_id, asked.token).session.listener
        if not isinstance(listener, Resumable):  # it has just ended
            raise not_found(asked.session_id)
        return listener

    # The call's side

    def on_message(self, data: bytes) -> bool:
        """Take one message; False if the stream should not be read further."""
        session = self._session
        if session is None:
            return False
        if not self.next:
            self._context.metrics.error(error := _early())
            self.call.end(*as_status(error))
            return False
        if self._step_bytes and (payload := only_input(data)) is not None:
            steps, over = divmod(len(payload), self._step_bytes)
            if not over and steps <= self._few_steps:
                work = Work((payload,), steps, session.output, 0, time.perf_counter())
                return session.submit(self, work)
        try:
            check_size(data, self._context.limits)
            return self._take(session, data)
        except ServiceError as error:
            session.refuse(self, error)
            return False

    def _take(self, session: Resumable, data: bytes) -> bool:
        try:
            request = pb.StreamRequest.FromString(data)
        except DecodeError as error:
            raise MalformedMessage("the message is not a streamcell.v1.StreamRequest") from error
        if request.HasField("open"):
            raise AlreadyOpen("this stream's session is open: only the first message may carry `open`")
        if request.HasField("stop_generation") or request.HasField("received"):
            check_stop(request)
            self.call.skip()
            if request.HasField("stop_generation"):
                session.stop(self, request.stop_generation)
            else:
                session.received(self, (request.received, request.received_steps))
            return True
        if session.has(self.next):
            return session.submit(self, None)
        model, limits = session.live.model, self._context.limits
        output = output_mode(request.output_mode, session.output)
        if request.HasField("generate"):
            session.place.check_generates()
            work: Any = make_generating(request, session.live, limits, session, output, fresh=session.fresh)
            self.call.read_on()
        else:
            payloads = tuple(request.inputs)
            steps = count_steps(model.file.signature, payloads, request.steps)
            work = make_work(model, limits, payloads, steps, output, request.tag)
            session.place.check_reply(model.file.signature, work.steps_given)
        return session.submit(self, work)

    def on_half_close(self) -> None:
        """The client sends no more messages: end once the last reply is sent."""
        self.half_closed = True
        if self._session is None:
            self.call.end()
        else:
            self._session.finish_if_done(self)

    def finish(self) -> None:
        """End the call: the client has half-closed, and every message is answered. The session ends in `on_end`."""
        self._finished = True
        self.call.end()

    def on_end(self, cancelled: bool) -> None:
        """The call is over. The session ends with a call that its client has finished; else it is detached."""
        session, self._session = self._session, None
        if session is not None:
            session.left(self, finished=self._finished and not cancelled)


def _early() -> MalformedMessage:
    return MalformedMessage(
        "a message before the reply to the opening may be one that the session has: wait for the reply, or name its "
        "number in `first`"
    )
