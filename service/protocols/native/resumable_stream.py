"""One `Stream` call on a resumable session. The session outlives it: see `resumable.py`."""

from __future__ import annotations

import time
from typing import Any

from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.errors import (
    AlreadyOpen,
    MalformedMessage,
    ServiceError,
    SessionNotFound,
    addressed,
    as_status,
)
from streamcell.service.generation.work import Generating
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import (
    check_size,
    count_steps,
    fast_path_limits,
    make_work,
    output_mode,
)
from streamcell.service.sessions.session import Work
from streamcell.service.sessions.table import not_found
from streamcell.service.transport.calls import Call

from .generation_requests import again, check_stop, make_generating
from .openings import Resume, check_open
from .resumable import Resumable
from .resumable_openings import created, restored
from .resuming_call import ResumingCall
from .state_copies import copy_state
from .stored_session import StoredSession
from .wire import only_input


class ResumableStream(ResumingCall[Resumable]):
    """A call's handler. Messages go to the session as long as no later call has taken it."""

    __slots__ = ("_few_steps", "_step_bytes", "_usual_bytes")

    def __init__(self, call: Call, context: CallContext[Any]) -> None:
        super().__init__(call, context)
        # See `fast_path_limits`; `_step_bytes` is 0 while the session is put back.
        self._step_bytes = self._few_steps = self._usual_bytes = 0

    def begin(self, request: pb.StreamRequest) -> bool:
        """Take the opening: create the session, or attach to it. The session answers once it is at rest.

        Raises:
            MalformedMessage, DurabilityUnsupported: as `Resume.of`.
            SessionNotFound: there is no such session, or it has another token.
            SessionTakenOver: a later opening has been taken.
            SessionLimit, ModelNotFound, …: it cannot be created.
        """
        alone = not (request.inputs or request.steps or request.HasField("generate"))
        steps = request.open.received_steps
        asked = Resume.of(request.open, steps, alone=alone, again=self.call.again)
        context = self._context
        self.check_kept()
        found = self._find(asked)
        if context.stored is not None and (found is None or found.in_store):
            claim = context.stored.claim_of(asked, request.open, context, found)
            if claim is not None:
                self._asks_store = True
                self.call.read_on()  # what the store has is told unasked
                context.stored.open(claim, asked, context, self)
                return False
        if found is None and asked.must_exist:
            raise not_found(asked.session_id)
        by = self.call.caller.subject
        if found is None and request.open.snapshot:
            found = restored(asked, context, request.open, self.call.peer, by)
        elif found is None:
            model, opening = check_open(request.open, context)
            found = created(asked, model, opening, context, request.open, self.call.peer, by)
        self._go_on_with(found, asked)
        return True

    def _find(self, asked: Resume) -> Resumable | None:
        """The session that is live here."""
        sessions, tenant = self._context.sessions, self._context.tenant
        try:
            listener = sessions.claim(asked.session_id, asked.token, tenant).session.listener
        except SessionNotFound:
            return None
        # Otherwise it has just ended, or is a stream of frames.
        known = type(listener) is Resumable or type(listener) is StoredSession
        return listener if known and isinstance(listener, Resumable) else None

    def _go_on_with(self, session: Resumable, asked: Resume) -> None:
        self.session = session
        session.live.session.read_apart = session.in_store
        self.next = asked.first
        self._usual_bytes, self._few_steps = fast_path_limits(session.live.model, self._context.limits)
        self._step_bytes = self._usual_bytes
        signature = session.live.model.file.signature
        self._few_steps = session.place.most_steps(signature, session.output, self._few_steps)
        session.attach(self, asked)

    def landed(self, session: Resumable, asked: Resume) -> None:
        """The store has given its session to this replica: go on with it. On the store's thread.

        Raises:
            SessionTakenOver, SessionMoved, …: as `StoredSession.attach`.
        """
        self._go_on_with(session, asked)
        if self.over:
            session.left(self, finished=False)
        else:
            self.call.resume()

    def refused(self, error: ServiceError) -> None:
        """The store has not given its session to this replica."""
        self.session = None
        self._context.metrics.error(addressed(error, self.call))
        self.call.end(*as_status(error))

    # The call's side

    def on_message(self, data: bytes) -> bool:
        """Take one message; False if the stream should not be read further."""
        session = self.session
        if session is None:
            return False
        if not self.next and not self.may_send():
            return False
        if self._asks_store:
            self.call.read_on()
        if self._step_bytes and (payload := only_input(data)) is not None:
            steps, over = divmod(len(payload), self._step_bytes)
            if not over and steps <= self._few_steps:
                work = Work((payload,), steps, session.output, 0, time.perf_counter())
                room = session.submit(self, work)
                return room if self._pace is None else self._pace.after(steps, room)
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
        if session.restoring:
            raise MalformedMessage("a message behind `restore`: wait for its reply, which may refuse it")
        self._step_bytes = self._usual_bytes
        if request.HasField("copy"):
            if request.copy.HasField("restore"):
                self._step_bytes = 0
            return copy_state(session, self, request, self._context)
        if request.HasField("generate"):  # it may wait for what its client says behind it, also if it goes on
            self.call.read_on()
        if session.has(self.next):
            if session.awaits_message and isinstance(session, StoredSession):
                session.sent_again(self, request)
            return session.submit(self, None)
        model, limits = session.live.model, self._context.limits
        output = output_mode(request.output_mode, session.output)
        if request.HasField("generate"):
            steps, grant = request.generate.steps, self._context.grant
            work: Any = make_generating(
                request, session.live, limits, session, output, grant, fresh=session.fresh
            )
            if session.place.generates is not None:
                self._check_generates(session, request, work)
        else:
            payloads = tuple(request.inputs)
            steps = count_steps(model.file.signature, payloads, request.steps)
            work = make_work(model, limits, payloads, steps, output, request.tag)
            session.place.check_reply(model.file.signature, work.steps_given)
        room = session.submit(self, work)
        return room if self._pace is None else self._pace.after(steps, room)

    @staticmethod
    def _check_generates(session: Resumable, request: pb.StreamRequest, work: Any) -> None:
        """Raise MessageTooLarge if the journal has no room for the replies; the room that `work` holds is free then."""
        live = session.live
        if isinstance(work, Generating):
            work.asked = again(request, work)
        try:
            session.place.check_generates(live.model.file.signature, work, request.generate)
        except ServiceError:
            work.drop(live.model.batcher.capacity)
            raise
