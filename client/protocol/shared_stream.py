"""Many sessions on one stream of frames, without transport: makes frames of messages and deals out the replies."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import numpy as np

from streamcell.client.errors import MessageTooLarge, ServerFault, StreamCellError, Unavailable, from_reason
from streamcell.proto import pb

from .frame_rows import FrameRows, alone_bytes, most_handles
from .members import NEVER_OPEN, PENDING, STREAM_LEFT, Asked, Member, Row, RowReply, Wish

_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(slots=True)
class _Sent:
    """A frame without its reply: the sessions that it opens and closes, and its rows."""

    joined: list[Member] = field(default_factory=list)
    finished: list[Member] = field(default_factory=list)
    rows: FrameRows | None = None


class SharedExchange:
    """The exchange of one stream of frames that carries many sessions.

    One thread or task calls `handle` and `next_frame`, and another one may call `deal`. A frame is made of what waits
    when the writer is free for it.

    Attributes:
        opened: the server's reply to the opening; None before it.
        stalled: True if something waits for a reply to an earlier frame; the reader then asks for `Wish.LOOK`.
    """

    def __init__(self, model: str, version: str, ask: Callable[[Asked], None], frames_ahead: int) -> None:
        """Make the exchange of a stream that is not open yet.

        Args:
            model: the model's name.
            version: its version; empty for the newest.
            ask: brings something to `handle`, from any thread.
            frames_ahead: how many frames may be unanswered; messages collect for the next one.
        """
        self._frames_ahead = frames_ahead
        self._open: pb.OpenFrames | None = pb.OpenFrames(model=model, version=version, current_only=True)
        self._ask = ask
        self._members: set[Member] = set()
        self._joining: list[Member] = []
        self._joining_alone: deque[Member] = deque()  # there was no room for all that asked together
        self._ready: deque[Member] = deque()
        self._finishing: dict[Member, None] = {}
        self._leaving: list[int] = []
        self._sent: deque[_Sent] = deque()
        self._answered = 0
        self._greeting = pb.StreamResponse()
        self._output_bytes: list[int] = []
        self._step_bytes = 0  # of all outputs
        self.opened: pb.SessionOpened | None = None
        self.stalled = False

    # For the writer

    @property
    def unused(self) -> bool:
        """True if it has no session."""
        return not self._members

    @property
    def forsaken(self) -> bool:
        """True if replies are due and nobody waits for them: there are no sessions but some that ask to join."""
        if len(self._members) > len(self._joining) + len(self._joining_alone):
            return False
        sent = tuple(self._sent)
        return any(each.rows is not None for each in sent) and not any(each.finished for each in sent)

    def handle(self, asked: Asked) -> None:
        """Note what a session asks for."""
        member, what = asked
        if member is None:
            return
        if isinstance(what, Row):
            if not member.over and self._fits(member, what):
                member.waiting.append(what)
                self._queue(member)
        elif what is Wish.JOIN:
            self._members.add(member)
            (self._joining_alone if member.joined else self._joining).append(member)
            member.joined = True
        elif what is Wish.LOOK:
            self._queue(member)
        elif what is Wish.FINISH:
            member.done = True
            self._finish(member)
        else:
            self._leave(member)

    def _fits(self, member: Member, row: Row) -> bool:
        """True if the server takes a message as large as this one; if not, its session ends."""
        assert self.opened is not None
        limit, got = self.opened.max_message_bytes, alone_bytes(row)
        if got <= limit:
            return True
        error = MessageTooLarge(
            f"a message may have {limit} bytes, this one has {got}",
            reason="MESSAGE_TOO_LARGE",
            metadata={"limit": str(limit), "got": str(got)},
        )
        member.end(error)
        self._leave(member)
        return False

    def _finish(self, member: Member) -> None:
        """Close a session that has sent its last message, in a frame after that one."""
        if member.done and not member.waiting and member.handle >= 0 and member in self._members:
            self._finishing[member] = None

    def _queue(self, member: Member) -> None:
        if member.waiting and not member.queued:
            member.queued = True
            self._ready.append(member)

    def _leave(self, member: Member) -> None:
        """Let a session go. One whose opening is under way stays until the reply brings its handle."""
        if member not in self._members:
            return
        member.waiting.clear()
        for joining in (self._joining, self._joining_alone):
            if member in joining:
                joining.remove(member)
                member.handle = NEVER_OPEN
        if member.handle != PENDING:
            self._members.discard(member)
            if member.handle >= 0:
                self._leaving.append(member.handle)

    def carries(self, member: Member) -> bool:
        """True if the stream can carry this session. Call it once the stream is open."""
        opened = self.opened
        assert opened is not None
        return opened.max_message_bytes > 0 and not (member.generates and opened.HasField("generation"))

    def cost(self, message: Row) -> int:
        """Bytes of a message and its reply."""
        return alone_bytes(message) + message.steps * self._step_bytes

    def end(self, error: StreamCellError) -> None:
        """End every session with `error`, because the stream has ended."""
        for member in (*self._members, *(each for sent in self._sent for each in sent.finished)):
            member.end(error.again())
        self._members.clear()
        self._leaving.clear()

    def next_frame(self) -> pb.FrameRequest | None:
        """The next frame, if there is something to send and not too much on its way."""
        if self._open is not None:
            frame = pb.FrameRequest(open=self._open)
            self._open = None
            self._sent.append(_Sent())
            return frame
        if self.forsaken:  # the server may hang
            self._send_elsewhere()
            return None
        self.stalled = True  # set before the look, so that no reply is missed
        if self.opened is None or len(self._sent) >= self._frames_ahead:
            return None
        self.stalled = False
        if not (self._joining or self._joining_alone or self._finishing or self._leaving or self._ready):
            return None
        sent = _Sent(joined=self._take_joining())
        frame = pb.FrameRequest(answered=self._answered, open_sessions=len(sent.joined))
        closing = self._take_closing(sent, most_handles(self.opened.max_message_bytes))
        frame.close = np.array(closing, "<u4").tobytes()
        rows = FrameRows(self.opened.max_message_bytes, len(closing))
        self._fill(rows)
        if rows.members:
            rows.write(frame)
            sent.rows = rows
        if not (closing or sent.joined or sent.rows):
            return None
        self._sent.append(sent)
        return frame

    def _send_elsewhere(self) -> None:
        """Let sessions that ask to join open on another stream."""
        for member in (*self._joining, *self._joining_alone):
            self._members.discard(member)
            member.end(Unavailable("the stream was left: open the session on another", reason=STREAM_LEFT))
        self._joining.clear()
        self._joining_alone.clear()

    def _take_closing(self, sent: _Sent, most: int) -> list[int]:
        """The handles that the next frame closes."""
        closing, self._leaving = self._leaving[:most], self._leaving[most:]
        for member in list(self._finishing)[: most - len(closing)]:
            del self._finishing[member]
            if member in self._members:
                self._members.discard(member)
                sent.finished.append(member)
                closing.append(member.handle)
        return closing

    def _take_joining(self) -> list[Member]:
        """The sessions that the next frame opens: all or none of them will be."""
        if self._joining_alone:
            return [self._joining_alone.popleft()]
        joining, self._joining = self._joining, []
        for member in joining:
            if not self.carries(member):
                self._members.discard(member)
                member.end(Unavailable("the model has changed: open the session again",
                                       reason="MODEL_REPLACED"))  # fmt: skip
        return [member for member in joining if not member.over]

    def _fill(self, rows: FrameRows) -> None:
        """Take a message of each ready session that fits the first one's; the others lead the next frame."""
        later: list[Member] = []
        while self._ready:
            member = self._ready.popleft()
            member.stalled = True  # set before the look, so that no reading is missed
            if not member.waiting or not member.room:
                member.queued = False
                continue
            member.stalled = False
            message = member.waiting[0]
            message.cost = message.cost or self.cost(message)
            if not rows.add(member):
                later.append(member)
        self._ready.extend(later)
        for member in rows.members:
            member.queued = False
            self._queue(member)
            self._finish(member)

    # For the reader

    def deal(self, reply: pb.FrameResponse) -> None:
        """Give each session its part of the reply to the oldest frame.

        Raises:
            ServerFault: the reply does not fit the frame.
        """
        if not self._sent:
            raise _malformed("the server sent a reply that belongs to no frame")
        sent = self._sent[0]
        if self.opened is None:
            self._accept(reply)
        errors: dict[int, pb.FrameError] = {}
        refusal: StreamCellError | None = None
        for each in reply.errors:
            if each.part == pb.FRAME_PART_ROW:
                errors.setdefault(each.index, each)
            elif each.part == pb.FRAME_PART_OPEN:
                refusal = _error(each)
        if sent.joined:
            self._joined(sent.joined, reply, refusal)
        if sent.rows is not None:
            self._answer(sent.rows, reply, errors)
        for member in sent.finished:
            member.end(None)
        self._sent.popleft()
        self._answered += 1
        if self.stalled:
            self._ask((None, Wish.LOOK))

    def _accept(self, reply: pb.FrameResponse) -> None:
        if not reply.HasField("opened"):
            raise _malformed("the first reply lacks the field `opened`")
        self._greeting = pb.StreamResponse(opened=reply.opened)
        try:
            self._output_bytes = [
                math.prod(spec.step_shape) * np.dtype(spec.dtype).itemsize for spec in reply.opened.outputs
            ]
        except TypeError:  # a dtype that this client does not know: no session can be opened
            self._output_bytes = []
        self._step_bytes = sum(self._output_bytes)
        self.opened = reply.opened

    def _joined(
        self, members: list[Member], reply: pb.FrameResponse, refusal: StreamCellError | None
    ) -> None:
        if refusal is not None:
            apart = refusal.reason == "SESSION_LIMIT" and len(members) > 1
            for member in members:
                if apart and not member.over:
                    self._ask((member, Wish.JOIN))
                    continue
                member.handle = NEVER_OPEN
                member.end(refusal.again())
                self._ask((member, Wish.LEAVE))
            return
        handles = np.frombuffer(reply.handles, "<u4").tolist()
        if len(handles) != len(members):
            raise _malformed(f"a frame opened {len(members)} sessions, the reply has {len(handles)} handles")
        for member, handle in zip(members, handles, strict=True):
            member.handle = handle
            if member.over:
                self._ask((member, Wish.LEAVE))
                continue
            member.deliver(self._greeting)
            if member.done:
                self._ask((member, Wish.FINISH))

    def _checked(self, reply: pb.FrameResponse, steps: int) -> list[tuple[bytes, int]]:
        """The reply's outputs, of `steps` timesteps in all, each with the bytes of one."""
        if not reply.outputs:
            return []
        if len(reply.outputs) != len(self._output_bytes):
            raise _malformed(
                f"expected {len(self._output_bytes)} outputs, the reply has {len(reply.outputs)}"
            )
        outputs = list(zip(reply.outputs, self._output_bytes, strict=True))
        for data, size in outputs:
            if len(data) != steps * size:
                raise _malformed(
                    f"{steps} timesteps of an output take {steps * size} bytes, the reply has {len(data)}"
                )
        return outputs

    def _answer(self, rows: FrameRows, reply: pb.FrameResponse, errors: dict[int, pb.FrameError]) -> None:
        counts = rows.counts()
        outputs = self._checked(reply, sum(counts))
        if len(reply.step_indices) != 8 * len(counts):
            raise _malformed("the reply does not have one step index for each row")
        indices = np.frombuffer(reply.step_indices, "<u8").tolist()
        begin = 0
        for place, member in enumerate(rows.members):
            end = begin + counts[place]
            if member.over:
                pass
            elif errors and place in errors:
                member.end(_error(errors[place]))
                self._ask((member, Wish.LEAVE))
            else:
                cut = [data[begin * size : end * size] for data, size in outputs]
                member.deliver(RowReply(cut, counts[place], indices[place], rows.messages[place].cost))
            begin = end


def _error(refusal: pb.FrameError) -> StreamCellError:
    code = _CODES.get(refusal.code, grpc.StatusCode.UNKNOWN)
    return from_reason(code, refusal.reason, refusal.text, refusal.metadata)


def _malformed(text: str) -> ServerFault:
    return ServerFault(text, reason="MALFORMED_REPLY")
