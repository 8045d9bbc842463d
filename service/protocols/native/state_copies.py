"""Does what a `copy` asks of a resumable session, in the order of its messages: a snapshot, a fork, or a rewind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from streamcell.proto import pb
from streamcell.service.errors import MalformedMessage, ServiceError
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.sessions.image import Image
from streamcell.service.sessions.session import Aside
from streamcell.service.sessions.snapshot_errors import SnapshotMismatch

from .openings import Stream, check_secrets
from .resumable import Resumable
from .resumable_openings import forked
from .snapshots import Snapshots, content_of
from .stored_session import StoredSession

# Of a reply that has no text: what the journal must have room for.
_REPLY_BYTES = 128


def copy_state(
    session: Resumable, stream: Stream, request: pb.StreamRequest, context: CallContext[Any]
) -> bool:
    """Queue what `request.copy` asks for; True if there is room for another message.

    Raises:
        MalformedMessage: it does not stand alone, or comes too early, or lacks something.
        MessageTooLarge: the journal has no room for the reply.
    """
    copy, kind = request.copy, request.copy.WhichOneof("kind")
    if kind is None or request.inputs or request.steps or request.HasField("generate"):
        raise MalformedMessage("`copy` says what to copy, and stands alone in a message")
    if kind == "restore":
        return _rewind(session, stream, request, context)
    if not session.answers:
        raise MalformedMessage("a snapshot or a fork before the reply to the opening: wait for that reply")
    forks: list[StoredSession] = []  # that the store must have before it is told
    if kind == "fork":
        check_secrets(copy.fork.session, copy.fork.token, "a fork")
        if not copy.fork.window:
            raise MalformedMessage("a fork needs a `window` of 1 or more")
        make: Callable[[pb.StateCopied], None] = partial(
            _fork, session, stream.call.caller.subject, copy.fork, context, forks
        )
    else:
        make = partial(_snapshot, session, context)
    reply = pb.StreamResponse(tag=request.tag)

    def do() -> None:
        _fill(reply, session, context, make)
        reply.copied.applied = session.applied

    def answer() -> None:
        session.answer(stream, reply.SerializeToString())

    def stored(error: ServiceError | None) -> None:
        if error is not None:
            _refuse(reply, error, context)
        answer()

    def tell() -> None:
        if forks:
            context.stored.fork(forks[0], stored)
        else:
            answer()

    return session.ask(stream, Aside(session.live.session, do, tell))


def _snapshot(session: Resumable, context: CallContext[Any], copied: pb.StateCopied) -> None:
    snapshots: Snapshots = context.snapshots
    model, source = session.live.model, session.live.session
    states = [b""] * len(model.file.signature.states) if source.fresh else model.read_states(source)
    image = Image(
        np.array([source.step_index]),
        [np.frombuffer(each, np.uint8) for each in states],
        [np.frombuffer(each, np.uint8) for each in source.opening],
        source.last_output,
    )
    copied.snapshot = snapshots.seal(content_of(model, image))
    _copied(session, context, "snapshot")


def _fork(
    session: Resumable,
    by: str,
    asked: pb.Fork,
    context: CallContext[Any],
    forks: list[StoredSession],
    copied: pb.StateCopied,
) -> None:
    made, new = forked(asked, session, context, by)
    if isinstance(made, StoredSession) and not made.fence:
        forks.append(made)
    if new:
        _copied(session, context, "fork")


def _copied(session: Resumable, context: CallContext[Any], kind: str) -> None:
    session.live.model.metrics.state_copied(kind)
    context.sessions.tell_copied(session.live, kind)


def _rewind(session: Resumable, stream: Stream, request: pb.StreamRequest, context: CallContext[Any]) -> bool:
    """Queue a restore. A refused one is answered, and changes nothing."""
    if session.has(stream.next):
        return session.submit(stream, None)
    session.place.check_room(_REPLY_BYTES)
    snapshots: Snapshots = context.snapshots
    reply = pb.StreamResponse(tag=request.tag)
    images: list[Image] = []
    read = partial(_read, session, snapshots, request.copy.restore, images)
    _fill(reply, session, context, read)  # here: the engine thread has no time to check it

    def do() -> None:
        for image in images:
            _put_back(session, context, image)
        reply.step_index = session.live.session.step_index

    def tell() -> None:
        reply.copied.applied = session.applied + 1
        if reply.ByteSize() > session.place.most_reply_bytes:
            reply.copied.error.ClearField("text")
            reply.copied.error.ClearField("metadata")
        session.rewound(reply.SerializeToString())

    return session.submit(stream, Aside(session.live.session, do, tell, numbered=True))


def _read(
    session: Resumable, snapshots: Snapshots, data: bytes, images: list[Image], copied: pb.StateCopied
) -> None:
    image = snapshots.image(snapshots.unseal(data), session.live.model)
    if image.opening(0) != session.live.session.opening:
        raise SnapshotMismatch(
            "the snapshot is of a session that was given other values at its opening: open a session with it instead"
        )
    images.append(image)


def _put_back(session: Resumable, context: CallContext[Any], image: Image) -> None:
    model, target = session.live.model, session.live.session
    steps = int(image.step_indices[0])
    if steps and image.values:
        model.engine.pool.write(target.writes, image.states(0))
    target.rewind(steps)
    target.last_output = image.last_output
    _copied(session, context, "rewind")


def _fill(
    reply: pb.StreamResponse,
    session: Resumable,
    context: CallContext[Any],
    make: Callable[[pb.StateCopied], None],
) -> None:
    """Let `make` fill the reply's `copied`, or say there why it was refused."""
    reply.copied.SetInParent()
    try:
        make(reply.copied)
    except ServiceError as error:
        _refuse(reply, error, context)
    reply.step_index = session.live.session.step_index


def _refuse(reply: pb.StreamResponse, error: ServiceError, context: CallContext[Any]) -> None:
    context.metrics.error(error)
    reply.copied.error.reason = error.reason
    reply.copied.error.text = str(error)
    reply.copied.error.metadata.update(error.facts)
    reply.copied.error.code = error.code.value[0]
