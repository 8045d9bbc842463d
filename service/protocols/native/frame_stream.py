"""One `StreamFrames` call: many sessions of a model, a message for all of them."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.access.grant import Members
from streamcell.service.errors import AlreadyOpen, MalformedMessage, NotOpen
from streamcell.service.frames.frame import Frame
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import check_dtypes, output_mode
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.table import Live
from streamcell.service.transport.calls import Call

from .call_session import CallSession
from .frame_parts import check_opened, frame_reply, named
from .frame_requests import make_frame
from .messages import opened
from .openings import lasts
from .resumable_frames import ResumableFrameStream


class FrameStream(CallSession[LoadedModel]):
    """One `StreamFrames` call and its sessions. Every frame goes through the engine thread, so they keep order."""

    __slots__ = ("_follows", "_members")

    def __init__(self, call: Call, context: CallContext[LoadedModel]) -> None:
        super().__init__(call, context)
        self._members = None if context.grant is None else Members(context.grant)
        # Set if sessions are opened only on the model that it means now.
        self._follows: pb.OpenFrames | None = None

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Never called: whole frames are delivered."""
        raise AssertionError("a stream of frames has no messages of its own")

    def _take(self, data: bytes) -> bool:
        try:
            request = pb.FrameRequest.FromString(data)
        except DecodeError as error:
            raise MalformedMessage("the message is not a streamcell.v1.FrameRequest") from error
        live = self._live
        if request.HasField("open"):
            if live is not None:
                raise AlreadyOpen("this stream is open: only the first frame may carry `open`")
            if lasts(request.open):
                stream = ResumableFrameStream(self._call, self._context)
                self._call.hand_to(stream)
                return stream.begin(request)
            live = self._start(request.open)
        elif live is None:
            raise NotOpen("the first frame of a stream must carry `open`")
        number = self._submitted + 1
        frame = make_frame(request, live.model, self._context.limits, self._output, number)
        check_opened(frame, request, live.model, self._context, self._follows, self._members)
        self._submitted = number
        room = live.model.batcher.submit(live.session, frame)
        return room if self._pace is None else self._pace.after(frame.timesteps, room)

    def _start(self, request: pb.OpenFrames) -> Live[LoadedModel]:
        context = self._context
        model = context.models.find(*named(request, context))
        check_dtypes(model.file.signature, request.dtypes)
        self._output = output_mode(request.output_mode, Output.ALL)
        if self._members is not None:
            self._members.begin()
        live = self._live = context.sessions.enter(
            model,
            lambda id_: model.frames.open(model.batcher, id_, self, self._call.peer),
            owner=context.grant,
            by=self._call.caller.subject,
        )
        self._follows = request if request.current_only else None
        told = opened(live, context.sessions.idle_timeout_s, context.limits)
        self._greeting = pb.FrameResponse(opened=told).SerializeToString()
        return live

    def deliver_frame(self, frame: Frame) -> None:
        """Send the reply to one frame."""
        reply = frame_reply(frame, self._context, None if self._live is None else self._live.model)
        if self._members is not None and self._live is not None:
            self._members.settle(frame.asked, self._live.session.members)
        self._call.reply(self._greeted(reply.SerializeToString()))
        self._was_answered()

    def on_end(self, cancelled: bool) -> None:
        """The call is over, however it ended."""
        super().on_end(cancelled)
        if self._members is not None:
            self._members.close()
