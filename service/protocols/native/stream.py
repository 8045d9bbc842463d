"""One `Stream` call and its session, from the opening message to the first end."""

from __future__ import annotations

import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.errors import AlreadyOpen, MalformedMessage, NotOpen, ServiceError
from streamcell.service.generation.reply import Reply
from streamcell.service.generation.search_work import Search
from streamcell.service.generation.work import Generating
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import (
    count_steps,
    fast_path_limits,
    make_work,
    output_mode,
)
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.snapshot_errors import NotResumable
from streamcell.service.sessions.table import Live
from streamcell.service.transport.calls import Call

from .call_session import CallSession
from .generation_requests import check_stop, make_generating
from .known_openings import KnownOpening, greeting_of, keep
from .openings import check_open, is_resumable
from .resumable_stream import ResumableStream
from .wire import generated_response, only_input, only_opening, stream_response


class StreamSession(CallSession[Model]):
    """One `Stream` call and its session."""

    __slots__ = ("_few_steps", "_generations", "_step_bytes")

    def __init__(self, call: Call, context: CallContext[Model]) -> None:
        super().__init__(call, context)
        self._generations: list[Generating | Search] = []  # those that have not ended, oldest first
        self._step_bytes = self._few_steps = 0  # see `fast_path_limits`

    # The call's side

    def on_message(self, data: bytes) -> bool:
        """Take one message; False if the stream should not be read further."""
        # Nearly every message is this, and passes every check: a few whole steps for an open session.
        if (
            self._step_bytes
            and (live := self._live) is not None
            and (payload := only_input(data)) is not None
        ):
            steps, over = divmod(len(payload), self._step_bytes)
            if not over and steps <= self._few_steps:
                self._submitted += 1
                work = Work((payload,), steps, self._output, 0, time.perf_counter())
                room = live.model.batcher.submit(live.session, work, self._call.run_after_arrivals)
                return room if self._pace is None else self._pace.after(steps, room)
        if self._live is None and (opening := only_opening(data)) is not None:
            known: KnownOpening | None = self._context.known_openings.get(opening[0])
            if known is not None and len(data) <= self._context.limits.max_message_bytes:
                steps, over = divmod(len(opening[1]), known.step_bytes)
                if not over and steps <= known.few_steps:
                    try:
                        return self._begin(known, data, opening[1], steps)
                    except ServiceError as error:
                        self.fail(error)
                        return False
        return super().on_message(data)

    def _take(self, data: bytes) -> bool:
        live = self._live
        try:
            request = pb.StreamRequest.FromString(data)
        except DecodeError as error:
            raise MalformedMessage("the message is not a streamcell.v1.StreamRequest") from error
        if request.HasField("open"):
            if live is not None:
                raise AlreadyOpen("this stream's session is open: only the first message may carry `open`")
            if is_resumable(request.open):
                return self._resume(request)
            live = self._open(request.open)
            keep(data, request.open, live, self._output, self._context)
            if not (request.inputs or request.steps or request.HasField("generate")):
                self._call.reply(self._reply([], 0, 0, request.tag))
                return True
        elif live is None:
            raise NotOpen("the first message of a stream must carry `open`")
        if request.HasField("copy"):
            raise NotResumable(
                "this session ends with its stream, and cannot be copied: open it with `session`, `token` and `window` "
                "(resume=True in Python)"
            )
        output = output_mode(request.output_mode, self._output)
        if request.HasField("stop_generation"):
            return self._stop(live, request)
        if request.HasField("generate"):
            return self._generate(live, request, output)
        return self._submit(live, tuple(request.inputs), request.steps, output, request.tag)

    def _begin(self, known: KnownOpening, data: bytes, payload: bytes, steps: int) -> bool:
        """Open a session as earlier ones were opened, and queue its first message; `data` is all of that."""
        model = known.model(self._context)
        if model is None:
            return self._take(data)
        self._output = known.output
        context = self._context
        live = self._live = context.sessions.open(
            model, self, self._call.peer, owner=context.grant, by=self._call.caller.subject
        )
        session = live.session
        self._greeting = known.before + session.session_id.encode() + known.after
        self._step_bytes, self._few_steps = known.step_bytes, known.few_steps
        self._submitted += 1
        work = Work((payload,), steps, known.output, 0, time.perf_counter())
        room = model.batcher.submit(session, work, self._call.run_after_arrivals)
        return room if self._pace is None else self._pace.after(steps, room)

    def _submit(
        self, live: Live[Model], payloads: tuple[bytes, ...], steps: int, output: Output, tag: int
    ) -> bool:
        """Queue one message; `steps` as declared, 0 for not."""
        steps = count_steps(live.model.file.signature, payloads, steps)
        work = make_work(live.model, self._context.limits, payloads, steps, output, tag)
        self._submitted += 1
        room = live.model.batcher.submit(live.session, work, self._call.run_after_arrivals)
        return room if self._pace is None else self._pace.after(steps, room)

    def _generate(self, live: Live[Model], request: pb.StreamRequest, output: Output) -> bool:
        """Queue one generation. Messages are read while it runs, because one may stop it."""
        limits, fresh = self._context.limits, not self._submitted
        work = make_generating(request, live, limits, self, output, self._context.grant, fresh=fresh)
        self._submitted += 1
        self._generations.append(work)
        self._call.read_on()
        room = live.model.batcher.submit(live.session, work)
        return room if self._pace is None else self._pace.after(request.generate.steps, room)

    def _stop(self, live: Live[Model], request: pb.StreamRequest) -> bool:
        check_stop(request)
        self._call.skip()
        stopped = [work for work in list(self._generations) if work.tag == request.stop_generation]
        for work in stopped:
            work.stopped = True
        if stopped:
            live.model.batcher.release(live.session)
        return True

    def _resume(self, request: pb.StreamRequest) -> bool:
        """Give the call to the handler of resumable sessions."""
        stream = ResumableStream(self._call, self._context)
        self._call.hand_to(stream)
        return stream.begin(request)

    def _open(self, request: pb.OpenSession) -> Live[Model]:
        context = self._context
        model, opening = check_open(request, context)
        self._output = output_mode(request.output_mode, Output.ALL)
        live = self._live = context.sessions.open(
            model, self, self._call.peer, owner=context.grant, by=self._call.caller.subject
        )
        live.session.opening = opening
        self._greeting = greeting_of(live, context)
        self._step_bytes, self._few_steps = fast_path_limits(model, context.limits)
        return live

    # The session's side

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Send the reply to one message."""
        reply = stream_response(outputs, steps, step_index, work.tag)
        if self._greeting:
            reply = self._greeted(reply)
        self._call.reply(reply)
        # `_was_answered` written out, which saves a call for each message.
        self._answered += 1
        if self._half_closed:
            self._finish_if_done()

    def generated(self, reply: Reply, *, last: bool) -> None:
        """Send one of the replies to a generation."""
        self._call.reply(self._greeted(generated_response(reply)), last=last)
        if last:
            self._generations.pop(0)
            self._was_answered()

    def has_room(self, wake: Callable[[], None]) -> bool:
        """True if the client has read enough, so that a generation may continue."""
        return self._call.has_room(wake)

    def _reply(self, outputs: list[bytes], steps: int, step_index: int, tag: int) -> bytes:
        return self._greeted(stream_response(outputs, steps, step_index, tag))
