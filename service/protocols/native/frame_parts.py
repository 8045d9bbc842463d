"""Prepares a frame's new sessions, and makes its reply, for every kind of stream of frames."""

from __future__ import annotations

from streamcell.proto import pb
from streamcell.service.access.grant import Members
from streamcell.service.errors import MalformedMessage, ModelReplaced, ServiceError
from streamcell.service.frames.frame import Frame, Refusal
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.openings import check_openings, given_in
from streamcell.service.sessions.image import Image
from streamcell.service.sessions.session import Output

from .snapshots import Snapshots, content_of

_PARTS = {
    "row": pb.FRAME_PART_ROW,
    "close": pb.FRAME_PART_CLOSE,
    "reset": pb.FRAME_PART_RESET,
    "open": pb.FRAME_PART_OPEN,
    "fork": pb.FRAME_PART_FORK,
    "snapshot": pb.FRAME_PART_SNAPSHOT,
    "restore": pb.FRAME_PART_RESTORE,
}


def check_opened(
    frame: Frame,
    request: pb.FrameRequest,
    model: LoadedModel,
    context: CallContext[LoadedModel],
    follows: pb.OpenFrames | None,
    granted: Members | None,
) -> None:
    """Note what the new sessions of `frame` begin with; if they cannot be opened, refuse all of them in it.

    Args:
        frame: that of `request`.
        model: the stream's.
        follows: the stream's opening, if sessions are opened only on the model that it means now.
        granted: the room that the stream has taken of its tenant, if there is one.

    Raises:
        MalformedMessage, WrongInputCount, SnapshotInvalid, …: that makes no sense, in the first frame of a stream.
    """
    if request.open_inputs or (frame.open_count and model.file.signature.open_inputs):
        _give(frame, request, model, context)
    if snapshot := request.restore or request.open.snapshot:
        _restore(frame, snapshot, model, context, granted)
    if frame.open_count or len(frame.fork):
        try:
            context.sessions.check_not_draining()
            _check_current(model, context, follows)
            _ask(granted, frame, frame.open_count + len(frame.fork))
        except ServiceError as error:
            if frame.open_count:
                frame.refusals.append(Refusal("open", 0, error))
            if len(frame.fork):
                frame.refusals.append(Refusal("fork", 0, error))
            frame.open_count, frame.fork = 0, frame.fork[:0]


def _ask(granted: Members | None, frame: Frame, count: int) -> None:
    """Take room for `count` sessions that the frame will open; raises QuotaExceeded."""
    if granted is not None:
        granted.ask(count)
        frame.asked += count
        frame.granted = granted


def _restore(
    frame: Frame,
    snapshot: bytes,
    model: LoadedModel,
    context: CallContext[LoadedModel],
    granted: Members | None,
) -> None:
    """Note the snapshot that the stream is restored to; if it is wrong, nothing is restored."""
    snapshots: Snapshots = context.snapshots
    try:
        if frame.open_count:
            raise MalformedMessage(
                "a frame that restores a snapshot opens no sessions: leave `open_sessions` 0"
            )
        context.sessions.check_not_draining()
        image = snapshots.image(snapshots.unseal(snapshot), model, frames=True)
        _ask(granted, frame, len(image.handles))
        frame.restore = image
    except ServiceError as error:
        if frame.number == 1:
            raise
        frame.refusals.append(Refusal("restore", 0, error))


def named(request: pb.OpenFrames, context: CallContext[LoadedModel]) -> tuple[str, str]:
    """The model's name and version: those of a snapshot, unless the client names a model."""
    if request.model or not request.snapshot:
        return request.model, request.version
    snapshots: Snapshots = context.snapshots
    content = snapshots.unseal(request.snapshot)
    return content.model, request.version or content.version


def _check_current(
    model: LoadedModel, context: CallContext[LoadedModel], follows: pb.OpenFrames | None
) -> None:
    """Raise what opening a session of its own would raise, or ModelReplaced if it would be on another model."""
    if follows is None:
        return
    current = context.models.find(follows.model, follows.version)
    if current is not model:
        name, version = model.file.name, current.file.version
        raise ModelReplaced(
            f"model {name!r} is served as version {version} now: open a new stream for new sessions",
            model=name,
            version=version,
        )


def _give(
    frame: Frame, request: pb.FrameRequest, model: LoadedModel, context: CallContext[LoadedModel]
) -> None:
    """Note the inputs of the new members; if they are wrong, no member is opened."""
    if not frame.open_count:
        raise MalformedMessage("`open_inputs` are for new sessions, and the frame opens none")
    signature = model.file.signature
    try:
        frame.openings = check_openings(
            signature,
            given_in(signature, request.open_inputs),
            frame.open_count,
            allow_non_finite=context.limits.allow_non_finite,
            batch=True,
        )
    except ServiceError as error:
        if frame.number == 1:
            raise
        frame.open_count = 0
        frame.refusals.append(Refusal("open", 0, error))


def frame_reply(
    frame: Frame, context: CallContext[LoadedModel], model: LoadedModel | None
) -> pb.FrameResponse:
    """The reply to a frame that is done; its refusals are counted for `model`, unless the stream has ended."""
    snapshot = b"" if frame.image is None or model is None else _snapshot(frame, frame.image, context, model)
    steps = frame.steps if frame.output is Output.ALL else int(frame.output is Output.LAST)
    return pb.FrameResponse(
        handles=frame.opened.astype("<u4").tobytes(),
        outputs=[output.tobytes() for output in frame.outputs],
        steps=steps if len(frame.handles) else 0,
        step_indices=frame.step_indices.astype("<u8").tobytes(),
        errors=[_error(refusal, context, model) for refusal in frame.refusals],
        tag=frame.tag,
        snapshot=snapshot,
        forked=frame.forked.astype("<u4").tobytes(),
    )


def _snapshot(frame: Frame, image: Image, context: CallContext[LoadedModel], model: LoadedModel) -> bytes:
    snapshots: Snapshots = context.snapshots
    try:
        return snapshots.seal(content_of(model, image, frames=True))
    except ServiceError as error:
        frame.refusals.append(Refusal("snapshot", 0, error))
        return b""


def _error(refusal: Refusal, context: CallContext[LoadedModel], model: LoadedModel | None) -> pb.FrameError:
    error = refusal.error
    context.metrics.error(error)
    if refusal.part == "row" and model is not None:
        model.metrics.request_failed(error)
    return pb.FrameError(
        part=_PARTS[refusal.part],
        index=refusal.index,
        reason=error.reason,
        text=str(error),
        metadata=error.facts,
        session_ended=refusal.session_ended,
        code=error.code.value[0],
    )
