"""One `StreamFrames` call: many sessions of a model, a message for all of them."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.errors import AlreadyOpen, MalformedMessage, ModelReplaced, NotOpen, ServiceError
from streamcell.service.frames.frame import Frame, Refusal
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.openings import check_openings, given_in
from streamcell.service.protocols.common.requests import check_dtypes, output_mode
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.table import Live
from streamcell.service.transport.calls import Call

from .call_session import CallSession
from .frame_requests import make_frame
from .messages import opened

_PARTS = {
    "row": pb.FRAME_PART_ROW,
    "close": pb.FRAME_PART_CLOSE,
    "reset": pb.FRAME_PART_RESET,
    "open": pb.FRAME_PART_OPEN,
}


class FrameStream(CallSession[LoadedModel]):
    """One `StreamFrames` call and its sessions. Every frame goes through the engine thread, so they keep order."""

    __slots__ = ("_follows",)

    def __init__(self, call: Call, context: CallContext[LoadedModel]) -> None:
        super().__init__(call, context)
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
            live = self._start(request.open)
        elif live is None:
            raise NotOpen("the first frame of a stream must carry `open`")
        number = self._submitted + 1
        frame = make_frame(request, live.model, self._context.limits, self._output, number)
        if request.open_inputs or (frame.open_count and live.model.file.signature.open_inputs):
            self._give(live.model, request, frame)
        if frame.open_count:
            try:
                self._context.sessions.check_not_draining()
                self._check_current(live.model)
            except ServiceError as error:
                frame.open_count = 0
                frame.refusals.append(Refusal("open", 0, error))
        self._submitted = number
        return live.model.batcher.submit(live.session, frame)

    def _check_current(self, model: LoadedModel) -> None:
        """Raise what opening a session of its own would raise, or ModelReplaced if it would be on another model."""
        if self._follows is None:
            return
        current = self._context.models.find(self._follows.model, self._follows.version)
        if current is not model:
            name, version = model.file.name, current.file.version
            raise ModelReplaced(
                f"model {name!r} is served as version {version} now: open a new stream for new sessions",
                model=name,
                version=version,
            )

    def _give(self, model: LoadedModel, request: pb.FrameRequest, frame: Frame) -> None:
        """Note what the new members are given; if that is wrong, none is opened."""
        if not frame.open_count:
            raise MalformedMessage("`open_inputs` are for new sessions, and the frame opens none")
        try:
            frame.openings = check_openings(
                model.file.signature,
                given_in(model.file.signature, request.open_inputs),
                frame.open_count,
                allow_non_finite=self._context.limits.allow_non_finite,
                batch=True,
            )
        except ServiceError as error:
            if frame.number == 1:
                raise
            frame.open_count = 0
            frame.refusals.append(Refusal("open", 0, error))

    def _start(self, request: pb.OpenFrames) -> Live[LoadedModel]:
        context = self._context
        model = context.models.find(request.model, request.version)
        check_dtypes(model.file.signature, request.dtypes)
        self._output = output_mode(request.output_mode, Output.ALL)
        live = self._live = context.sessions.enter(
            model, lambda id_: model.frames.open(model.batcher, id_, self, self._call.peer)
        )
        self._follows = request if request.current_only else None
        told = opened(live, context.sessions.idle_timeout_s, context.limits)
        self._greeting = pb.FrameResponse(opened=told).SerializeToString()
        return live

    def deliver_frame(self, frame: Frame) -> None:
        """Send the reply to one frame."""
        steps = frame.steps if frame.output is Output.ALL else int(frame.output is Output.LAST)
        reply = pb.FrameResponse(
            handles=frame.opened.astype("<u4").tobytes(),
            outputs=[output.tobytes() for output in frame.outputs],
            steps=steps if len(frame.handles) else 0,
            step_indices=frame.step_indices.astype("<u8").tobytes(),
            errors=[self._error(refusal) for refusal in frame.refusals],
            tag=frame.tag,
        )
        self._call.reply(self._greeted(reply.SerializeToString()))
        self._was_answered()

    def _error(self, refusal: Refusal) -> pb.FrameError:
        error = refusal.error
        self._context.metrics.error(error)
        if refusal.part == "row" and self._live is not None:
            self._live.model.metrics.request_failed(error)
        return pb.FrameError(
            part=_PARTS[refusal.part],
            index=refusal.index,
            reason=error.reason,
            text=str(error),
            metadata=error.facts,
            session_ended=refusal.session_ended,
            code=error.code.value[0],
        )
