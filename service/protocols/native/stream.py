"""One `Stream` call: its session, from the opening message to whichever end comes first."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.errors import AlreadyOpen, MalformedMessage, NotOpen, ServiceError, as_status
from streamcell.service.generation.search_work import Search
from streamcell.service.generation.work import Generating
from streamcell.service.lifecycle.table import Models
from streamcell.service.protocols.common.requests import (
    Limits,
    check_dtypes,
    check_size,
    count_steps,
    make_work,
    output_mode,
    quick,
)
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.table import Live, SessionTable
from streamcell.service.transport.calls import Call

from .generation_requests import make_generation, make_search
from .messages import opened
from .wire import only_input, stream_response

if TYPE_CHECKING:
    from streamcell.service.metrics.server_metrics import ServerMetrics


@dataclass(frozen=True)
class Service:
    """What every call needs."""

    models: Models
    sessions: SessionTable
    metrics: ServerMetrics
    limits: Limits


class StreamSession:
    """One call's handler, called on grpcio's thread, and its session's owner, called on the engine's.

    `_submitted` is written by the first thread only and `_answered` by the second only, so the end of a
    half-closed stream is seen by whichever comes last.
    """

    __slots__ = (
        "_answered",
        "_call",
        "_few_steps",
        "_finished",
        "_generations",
        "_greeting",
        "_half_closed",
        "_live",
        "_output",
        "_over",
        "_service",
        "_step_bytes",
        "_submitted",
    )

    def __init__(self, call: Call, service: Service) -> None:
        self._call = call
        self._service = service
        self._live: Live | None = None
        self._greeting: pb.SessionOpened | None = None
        self._output = Output.ALL
        self._generations: list[Generating | Search] = []  # those that have not ended, oldest first
        self._submitted = self._answered = 0
        self._step_bytes = self._few_steps = 0  # see `quick`
        self._half_closed = self._finished = self._over = False

    # The call's side

    def on_message(self, data: bytes) -> bool:
        """Take one message; False where the stream should not be read on."""
        # What nearly every message is, and passes every check: few whole steps for a session that is open.
        if (
            self._step_bytes
            and (live := self._live) is not None
            and (payload := only_input(data)) is not None
        ):
            steps, over = divmod(len(payload), self._step_bytes)
            if not over and steps <= self._few_steps:
                self._submitted += 1
                work = Work((payload,), steps, self._output, 0, time.perf_counter())
                return live.model.batcher.submit(live.session, work, self._call.soon)
        try:
            check_size(data, self._service.limits)
            return self._take(data)
        except ServiceError as error:
            self.fail(error)
            return False

    def _take(self, data: bytes) -> bool:
        live = self._live
        try:
            request = pb.StreamRequest.FromString(data)
        except DecodeError as error:
            raise MalformedMessage("the message is not a streamcell.v1.StreamRequest") from error
        if request.HasField("open"):
            if live is not None:
                raise AlreadyOpen("this stream's session is open: only the first message may carry `open`")
            live = self._open(request.open)
            if not (request.inputs or request.steps or request.HasField("generate")):
                self._call.reply(self._reply([], 0, 0, request.tag))
                return True
        elif live is None:
            raise NotOpen("the first message of a stream must carry `open`")
        output = output_mode(request.output_mode, self._output)
        if request.HasField("stop_generation"):
            return self._stop(live, request)
        if request.HasField("generate"):
            return self._generate(live, request, output)
        return self._submit(live, tuple(request.inputs), request.steps, output, request.tag)

    def _submit(self, live: Live, payloads: tuple[bytes, ...], steps: int, output: Output, tag: int) -> bool:
        """Queue one message; `steps` as declared, 0 for not."""
        steps = count_steps(live.model.file.signature, payloads, steps)
        work = make_work(live.model, self._service.limits, payloads, steps, output, tag)
        self._submitted += 1
        return live.model.batcher.submit(live.session, work, self._call.soon)

    def _generate(self, live: Live, request: pb.StreamRequest, output: Output) -> bool:
        """Queue one generation; messages are read while it runs, for one may stop it."""
        limits, fresh = self._service.limits, not self._submitted
        work: Generating | Search
        if request.generate.HasField("beam"):
            work = make_search(request, live.model, limits, self, live.session, fresh=fresh)
        else:
            work = make_generation(request, live.model, limits, self, output, fresh=fresh)
        self._submitted += 1
        self._generations.append(work)
        self._call.read_on()
        return live.model.batcher.submit(live.session, work)

    def _stop(self, live: Live, request: pb.StreamRequest) -> bool:
        if request.inputs or request.steps or request.HasField("generate") or request.HasField("open"):
            raise MalformedMessage("stop_generation stands alone in a message")
        self._call.skip()
        for work in list(self._generations):
            if work.tag == request.stop_generation:
                work.stopped = True
        live.model.batcher.release(live.session)
        return True

    def _open(self, request: pb.OpenSession) -> Live:
        service = self._service
        model = service.models.find(request.model, request.version)
        check_dtypes(model.file.signature, request.dtypes)
        self._output = output_mode(request.output_mode, Output.ALL)
        live = self._live = service.sessions.open(model, self, self._call.peer)
        self._greeting = opened(live, service.sessions.idle_timeout_s, service.limits)
        self._step_bytes, self._few_steps = quick(model, service.limits)
        return live

    def on_half_close(self) -> None:
        """The client has no more messages: end once the last reply is out."""
        self._half_closed = True
        self._finish_if_done()

    def on_end(self, cancelled: bool) -> None:
        """The call is over, however it ended."""
        # The session knows its owner: forgetting it here leaves no cycle for the garbage collector.
        live, self._live = self._live, None
        self._over = True
        if live is None:
            return
        if self._finished:
            reason = "cancelled" if cancelled else "closed"
            live.model.metrics.session_ended(reason, live.session.members)
        else:
            self._service.sessions.end(live, self._call.gone)

    # The session's side

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Send the reply to one message."""
        reply = stream_response(outputs, steps, step_index, work.tag)
        self._call.reply(reply if self._greeting is None else self._greeted(reply))
        self._answered += 1
        if self._half_closed:
            self._finish_if_done()

    def generated(self, reply: bytes, *, last: bool) -> None:
        """Send one of the replies to a generation."""
        self._call.reply(self._greeted(reply), last=last)
        if last:
            self._generations.pop(0)
            self._answered += 1
            if self._half_closed:
                self._finish_if_done()

    def has_room(self, wake: Callable[[], None]) -> bool:
        """Whether the client has read enough for a generation to go on."""
        return self._call.has_room(wake)

    def resume(self) -> None:
        """Read on: the queue has room."""
        self._call.resume()

    def fail(self, error: ServiceError) -> None:
        """End the session and the call with a typed error. The first end stands."""
        if self._over:
            return
        live = self._live
        if live is None or self._service.sessions.end(live, error.reason.lower()):
            self._service.metrics.error(error)
            if live is not None:
                live.model.metrics.request_failed(error)
            self._call.end(*as_status(error))

    def _reply(self, outputs: list[bytes], steps: int, step_index: int, tag: int) -> bytes:
        return self._greeted(stream_response(outputs, steps, step_index, tag))

    def _greeted(self, reply: bytes) -> bytes:
        if self._greeting is None:
            return reply
        # Concatenated messages merge: protobuf's own rule.
        greeting, self._greeting = pb.StreamResponse(opened=self._greeting), None
        return greeting.SerializeToString() + reply

    def _finish_if_done(self) -> None:
        if self._answered < self._submitted:
            return
        live = self._live
        if live is None or self._service.sessions.release(live):
            # Counted in `on_end`: a call that looks half-closed may have been cancelled.
            self._finished = True
            self._call.end()
