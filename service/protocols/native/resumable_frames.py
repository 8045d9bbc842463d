"""A stream of frames that outlives its calls: its sessions are one unit, and its frames are the messages."""

from __future__ import annotations

import time

import numpy as np
from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.access.grant import Members
from streamcell.service.durability.frame_entry import FoundStream, FrameEntry, Ints, no_members
from streamcell.service.durability.journal import Journal
from streamcell.service.errors import (
    AlreadyOpen,
    MalformedMessage,
    MessageTooLarge,
    ServiceError,
    SessionNotFound,
)
from streamcell.service.frames.frame import Frame
from streamcell.service.frames.members import LIVE, FrameSessions
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import check_dtypes, check_size, output_mode
from streamcell.service.sessions.resume_errors import DurabilityUnsupported
from streamcell.service.sessions.session import Output, Work
from streamcell.service.sessions.table import hash_token, not_found
from streamcell.service.transport.calls import Call

from .frame_parts import check_opened, frame_reply
from .frame_requests import make_frame
from .journal_place import level_for
from .openings import Resume, Stream
from .resumable import Resumable
from .resuming_call import ResumingCall


class ResumableFrames(Resumable):
    """One stream of frames, whichever call brings them."""

    def __init__(self, context: CallContext[LoadedModel], window: int, request: pb.OpenFrames) -> None:
        """`request`: what the stream is opened with."""
        super().__init__(context, window, output_mode(request.output_mode, Output.ALL))
        # Set if sessions are opened only on the model that it means now.
        self.follows = request if request.current_only else None
        self.granted = None if context.grant is None else Members(context.grant)

    @classmethod
    def open(
        cls, asked: Resume, request: pb.OpenFrames, context: CallContext[LoadedModel], peer: str, by: str
    ) -> ResumableFrames:
        """Open the stream that `asked` names, detached and without sessions; `by` is as for `SessionTable.open`.

        Raises:
            DurabilityUnsupported: it would not outlive what its client asks for.
            SessionNotFound: there is one of that id, with another token.
            ModelNotFound, SessionLimit, QuotaExceeded, ServerDraining, …: it cannot be opened.
        """
        assert context.kept is not None
        model = context.models.find(request.model, request.version)
        check_dtypes(model.file.signature, request.dtypes)
        window = min(asked.window, context.kept.max_window)
        journal = model.journal
        if journal is not None and not journal.counts.streams:
            journal = None
        level = level_for(asked.durability, journal, what="streams of frames")
        journal = None if level == pb.DURABILITY_NONE else journal
        made = cls(context, window, request)
        entry = None
        try:
            if made.granted is not None:
                made.granted.begin()
            if journal is not None:
                entry = journal.open_stream(
                    record_stream(asked, window, request, context.tenant), no_members()
                )
                if entry is None and asked.durability > pb.DURABILITY_NONE:
                    raise _no_place(journal)
            with made._lock:  # from here on other openings may find it
                made._enter(model, asked.session_id, hash_token(asked.token), peer, by)
                made._source = ""
                made._keep(entry, model)
        except ServiceError:
            made._kept.clear()
            if made.granted is not None:
                made.granted.close()
            if entry is not None:
                entry.close()
            raise
        return made

    @classmethod
    def recovered(
        cls, found: FoundStream, model: LoadedModel, context: CallContext[LoadedModel]
    ) -> tuple[Ints, Ints]:
        """Bring back a stream of an earlier process; returns the old rows of its members, and their slots.

        `context`: that of its tenant, see `tenant_of`.

        Raises:
            DecodeError: its opening is none.
            SessionLimit, SessionNotFound, QuotaExceeded, …: it cannot be brought back.
        """
        request = pb.OpenFrames.FromString(found.opening)
        made = cls(context, found.window, request)
        with made._lock:
            try:
                if made.granted is not None:
                    made.granted.begin()
                made._enter(model, found.session.hex(), found.token_hash, "")
                members = made._members
                count = int((found.members["status"] == LIVE).sum())
                if made.granted is not None:
                    made.granted.ask(count)
                rows = members.restore(found.members, model.batcher.capacity, time.monotonic())
                if made.granted is not None:
                    made.granted.settle(count, members.members)
                moved = found.members.copy()
                live = moved["status"] == LIVE
                moved["slot"][live] = moved["row"][live] = members.slots[: len(moved)][live]
                assert model.journal is not None
                entry = model.journal.open_stream(found, moved)
                if entry is None:
                    raise _no_place(model.journal)
                made._keep(entry, model)
            except ServiceError:
                made._over = True
                if hasattr(made, "live"):
                    context.sessions.end(made.live, "cancelled")
                if made.granted is not None:
                    made.granted.close()
                made._kept.clear()
                raise
            model.metrics.session_opened(len(rows))
            made.applied = made._accepted = found.number
            made._attempt = found.attempt
            made._source = "restart"
            members.detached_s = time.monotonic()
        return rows, members.slots[: len(moved)][live]

    def _enter(self, model: LoadedModel, session_id: str, token_hash: bytes, peer: str, by: str = "") -> None:
        self.live = self._context.sessions.enter(
            model,
            lambda id_: model.frames.open(model.batcher, id_, self, peer),
            session_id,
            token_hash,
            self._context.grant,
            by,
        )

    def _keep(self, entry: FrameEntry | None, model: LoadedModel) -> None:
        """Give the stream its place in the journal, if it has one."""
        if entry is not None and model.journal is not None:
            self.place.entry = entry
            self._members.keep(entry, model.journal.counts.slots)

    @property
    def _members(self) -> FrameSessions:
        session = self.live.session
        assert isinstance(session, FrameSessions)
        return session

    def check_reply(self, frame: Frame) -> None:
        """Raise MessageTooLarge if the journal has no room for the reply to `frame`."""
        entry, signature = self.place.entry, self.live.model.file.signature
        if not isinstance(entry, FrameEntry):
            return
        if frame.restore is not None and len(frame.handles):
            raise MalformedMessage(
                "a frame that puts a stream in a journal back carries no rows: send them behind it"
            )
        steps = {Output.ALL: frame.total, Output.LAST: len(frame.handles), Output.NONE: 0}[frame.output]
        size = 64 + steps * sum(8 + tensor.step_bytes for tensor in signature.outputs)
        size += 8 * len(frame.handles) + 4 * (frame.open_count + len(frame.fork))
        if size > entry.most:
            raise MessageTooLarge(
                f"the reply to this frame would have {size} bytes, and the journal has room for {entry.most}: send "
                "fewer rows or timesteps at once, ask for OUTPUT_MODE_LAST, open the stream with a smaller window, or "
                "start the server with larger --kept-reply-bytes",
                limit=entry.most,
                got=size,
            )

    def attach(self, stream: Stream, opening: Resume) -> None:
        """As for every session; its members do not count as idle for the time it was detached."""
        super().attach(stream, opening)
        members, now_s = self._members, time.monotonic()
        self.live.model.batcher.change(members, lambda: members.used_s.fill(now_s))

    def _end(self, reason: str) -> bool:
        ended = super()._end(reason)
        if ended and self.granted is not None:
            self.granted.close()
        return ended

    def _greeting(self) -> bytes:
        return pb.FrameResponse(opened=self._about()).SerializeToString()

    # The session's side

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Never called: whole frames are delivered."""
        raise AssertionError("a stream of frames has no messages of its own")

    def deliver_frame(self, frame: Frame) -> None:
        """Keep and send the reply to one frame."""
        if isinstance(self.place.entry, FrameEntry):
            changed = [frame.handles, frame.close, frame.reset, frame.opened, frame.forked]
            if frame.restore is not None:
                changed.append(np.arange(len(self._members.status)))
            self.place.entry.touch(self._members, np.concatenate(changed))
        if self.granted is not None:
            self.granted.settle(frame.asked, self._members.members)
        self._tell(frame_reply(frame, self._context, self.live.model).SerializeToString())


class ResumableFrameStream(ResumingCall[ResumableFrames]):
    """One `StreamFrames` call on a resumable stream of frames."""

    __slots__ = ()

    def __init__(self, call: Call, context: CallContext[LoadedModel]) -> None:
        super().__init__(call, context)
        self.after_arrivals = None  # frames run on the engine thread

    def begin(self, request: pb.FrameRequest) -> bool:
        """Take the opening: create the stream, or attach to it. It answers once it is at rest.

        Raises:
            MalformedMessage, DurabilityUnsupported: as `Resume.of`.
            SessionNotFound: there is no such stream, or it has another token.
            SessionTakenOver: a later opening has been taken.
            ModelNotFound, ServerDraining, …: it cannot be created.
        """
        if request.open.snapshot:
            raise MalformedMessage(
                "a resumable stream begins with a snapshot by `restore` in its first frame"
            )
        bare = pb.FrameRequest(open=request.open)
        alone = request.ByteSize() == bare.ByteSize()
        asked = Resume.of(request.open, alone=alone, again=self.call.again)
        self.check_kept()
        try:
            listener = self._context.sessions.claim(
                asked.session_id, asked.token, self._context.tenant
            ).session.listener
            if not isinstance(listener, ResumableFrames):  # it has just ended, or is no stream of frames
                raise not_found(asked.session_id)
            session = listener
        except SessionNotFound:
            if asked.must_exist:
                raise
            session = ResumableFrames.open(
                asked, request.open, self._context, self.call.peer, self.call.caller.subject
            )
        self.session = session
        self.next = asked.first
        session.attach(self, asked)
        return True

    def on_message(self, data: bytes) -> bool:
        """Take one frame; False if the stream should not be read further."""
        session = self.session
        if session is None or not self.may_send():
            return False
        try:
            check_size(data, self._context.limits)
            return self._take(session, data)
        except ServiceError as error:
            session.refuse(self, error)
            return False

    def _take(self, session: ResumableFrames, data: bytes) -> bool:
        try:
            request = pb.FrameRequest.FromString(data)
        except DecodeError as error:
            raise MalformedMessage("the message is not a streamcell.v1.FrameRequest") from error
        if request.HasField("open"):
            raise AlreadyOpen("this stream is open: only the first frame may carry `open`")
        if request.HasField("received"):
            self.call.skip()
            session.received(self, (request.received, 0))
            return True
        if session.has(self.next):
            return session.submit(self, None)
        model = session.live.model
        frame = make_frame(request, model, self._context.limits, session.output, self.next)
        check_opened(frame, request, model, self._context, session.follows, session.granted)
        try:
            session.check_reply(frame)
        except ServiceError:
            frame.drop(model.batcher.capacity)
            raise
        room = session.submit(self, frame)
        return room if self._pace is None else self._pace.after(frame.timesteps, room)


def record_stream(asked: Resume, window: int, request: pb.OpenFrames, tenant: str) -> FoundStream:
    """What the journal keeps of a new stream. Its opening's `token` is the tenant: only the token's hash is kept."""
    opening = pb.OpenFrames(
        output_mode=request.output_mode, current_only=request.current_only, token=tenant.encode()
    )
    if request.current_only:
        opening.model, opening.version = request.model, request.version
    return FoundStream(
        session=bytes.fromhex(asked.session_id),
        token_hash=hash_token(asked.token),
        attempt=0,
        window=window,
        opening=opening.SerializeToString(),
        number=0,
        members=no_members(),
        replies={},
    )


def tenant_of(found: FoundStream) -> str:
    """Whose a stream of an earlier process is; empty if it is no tenant's.

    Raises:
        DecodeError: its opening is none.
    """
    return pb.OpenFrames.FromString(found.opening).token.decode()


def _no_place(journal: Journal) -> DurabilityUnsupported:
    return DurabilityUnsupported(
        f"the journal has room for {journal.counts.streams} streams of frames, and all are taken: ask for "
        "DURABILITY_NONE, or start the server with larger --journal-frame-streams",
        has=pb.DURABILITY_NONE,
    )
