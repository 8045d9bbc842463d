"""A session that outlives its streams: counts its messages, keeps replies, and goes on with whoever has its token.

Both ends number the messages 1, 2, …. A message is *applied* once its last reply is kept. A takeover is, in this order:
the old stream is detached, messages of which nothing has run are dropped, what runs is let finish, and only then the
new stream is told how many messages are applied. So no message is applied twice: docs/durable-sessions.md.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from streamcell.proto import pb
from streamcell.service.durability.found import Found
from streamcell.service.errors import ServiceError, as_status
from streamcell.service.generation.reply import Reply
from streamcell.service.generation.search_work import Search
from streamcell.service.generation.work import Generating
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import output_mode
from streamcell.service.sessions.kept_replies import KeptReplies, Place
from streamcell.service.sessions.resume_errors import SessionTakenOver
from streamcell.service.sessions.session import ENDED, Output, Work
from streamcell.service.sessions.table import Live, hash_token, not_found
from streamcell.service.transport.calls import Call

from .journal_place import JournalPlace, journal_for, record
from .messages import opened
from .openings import Resume, Stream, compare
from .wire import generated_response, stream_response

HOLD = 64  # replies of a generation that the client has not told it has: then it waits


class Resumable:
    """A session's listener. Its lock guards its counts; nothing is sent while it is held.

    Attributes:
        live: the session; set when it is opened.
        output: the output steps of a message that does not name any.
        applied: messages whose last reply is kept.
        place: in its model's journal, if it outlives the process.
    """

    live: Live[Any]

    def __init__(self, context: CallContext[Any], window: int, output: Output) -> None:
        assert context.kept is not None
        self.output = output
        self.applied = 0
        self.place = JournalPlace(window)
        self._context = context
        self._window = window
        self._kept = KeptReplies(window, context.kept)
        self._lock = threading.Lock()
        self._attempt = 0  # of the latest opening that was taken
        self._accepted = 0  # messages that are applied, run or wait
        self._steps = 0  # timesteps told of message `applied` + 1, a generation
        self._generations: list[Generating | Search] = []  # those that have not ended, oldest first
        self._stream: Stream | None = None  # the latest one, until it ends
        self._opening: Resume | None = None  # its opening, while that is not answered
        self._rest = 0  # it is answered once so many messages are applied
        self._source = "detached"  # where it found the session
        # The reply to the opening and those behind it, until they are sent.
        self._unsent: deque[tuple[bytes, bool]] | None = None
        self._call: Call | None = None  # its call, once replies go straight to it
        self._wake: Callable[[], None] | None = None  # lets a generation go on
        self._told = -1  # messages of which the client has said that it has all replies
        self._paused = self._over = False

    @classmethod
    def create(
        cls,
        asked: Resume,
        model: Any,
        opening: tuple[bytes, ...],
        context: CallContext[Any],
        request: pb.OpenSession,
        peer: str,
    ) -> Resumable:
        """Open the session that `asked` names, detached.

        Raises:
            DurabilityUnsupported: it would not outlive what its client asks for.
            SessionNotFound: there is one of that id, with another token.
            SessionLimit, ServerDraining, …: as `SessionTable.open`.
        """
        assert context.kept is not None
        journal = journal_for(asked, model.journal)
        window = min(asked.window, context.kept.max_window)
        made = cls(context, window, output_mode(request.output_mode, Output.ALL))
        known = (asked.session_id, hash_token(asked.token))
        try:
            with made._lock:  # from here on other openings may find it
                made.live = context.sessions.open(model, made, peer, *known)
                session, made._source = made.live.session, ""
                session.opening = opening
                if journal is not None:
                    made.place.enter(
                        session, journal, record(asked, window, request, model.file.signature, session)
                    )
        except ServiceError:
            made._kept.clear()
            raise
        return made

    @classmethod
    def recovered(
        cls,
        found: Found,
        request: pb.OpenSession,
        model: Any,
        opening: tuple[bytes, ...],
        context: CallContext[Any],
    ) -> Resumable:
        """Bring back a session that an earlier process has left; `request` and `opening` are its opening's.

        Raises:
            SessionLimit, ServerDraining, …: as `SessionTable.open`.
        """
        made = cls(context, found.window, output_mode(request.output_mode, Output.ALL))
        with made._lock:
            try:
                made.live = context.sessions.open(model, made, "", found.session.hex(), found.token_hash)
            except ServiceError:
                made._kept.clear()
                raise
            session = made.live.session
            session.opening = opening
            made.place.enter(session, model.journal, found)
            if found.stamp:
                session.advance(found.stamp, whole=True)
            made.applied = made._accepted = found.number
            made._attempt = found.attempt
            made._source = "restart"
            session.detached_s = time.monotonic()
        return made

    # From its streams

    def attach(self, stream: Stream, asked: Resume) -> None:
        """Let `stream` go on with the session, instead of the stream that has it.

        Raises:
            SessionTakenOver: a later opening was taken before.
            SessionNotFound: it has ended.
        """
        with self._lock:
            live = self.live
            if self._over:
                raise not_found(live.session.session_id)
            if asked.attempt <= self._attempt:
                raise SessionTakenOver("a later opening has taken this session; this one changes nothing")
            self._attempt = asked.attempt
            if self.place.entry is not None:
                self.place.entry.attempt(asked.attempt)
            old, self._stream = self._stream, stream
            if old is not None:
                self._source = "stream"
            self._opening, self._unsent, self._call = asked, None, None
            self._paused = False
            dropped = live.model.batcher.drop_waiting(live.session)
            self._accepted -= len(dropped)
            gone = set(map(id, dropped))
            self._generations = [each for each in self._generations if id(each) not in gone]
            live.session.detached_s = None
            live.session.peer = stream.call.peer
            live.session.last_used_s = time.monotonic()
            # A generation that has begun goes on by itself, so nobody waits for its end.
            self._rest = self.applied if self._generations else self._accepted
        if old is not None:
            self._end_stream(old, SessionTakenOver("another opening has taken this session"))
        self._answer_opening()

    def _answer_opening(self) -> None:
        """Answer the latest opening, if the session is at rest: what is applied, and what its client lacks."""
        with self._lock:
            asked, stream = self._opening, self._stream
            if asked is None or stream is None or self.applied < self._rest:
                return
            self._opening = None
            lacked = self.place.lacked(asked.place, self.applied, self._kept)
            error, replies = compare(asked, self.applied, lacked)
            if error is None:
                stream.next = stream.next or self.applied + 1
                self._unsent = deque([(self._greeting(), True), *[(data, False) for data in replies]])
            else:
                self._stream = None
                self.live.session.detached_s = time.monotonic()
            source, self._source = self._source, "detached"
        if source:
            result = "resumed" if error is None else error.reason.lower()
            self.live.model.metrics.session_resumed(source, result, len(replies))
        if error is None:
            self._send_unsent(stream)
        else:
            self._end_stream(stream, error)

    def _greeting(self) -> bytes:
        sessions = self._context.sessions
        about = opened(self.live, sessions.idle_timeout_s, self._context.limits)
        about.applied, about.applied_steps = self.applied, self._steps
        about.step_index = self.live.session.step_index
        about.durability = self.place.durability
        if self._generations:
            about.generating = self._generations[0].tag
        about.linger_s, about.window = sessions.linger_s, self._window
        return pb.StreamResponse(opened=about).SerializeToString()

    def _send_unsent(self, stream: Stream) -> None:
        """Send what stands behind the opening's reply, and then let replies go straight to the call."""
        wake: Callable[[], None] | None = None
        while True:
            with self._lock:
                if self._stream is not stream or self._unsent is None:
                    return
                following = self._unsent.popleft() if self._unsent else None
                if following is None:
                    self._unsent, self._call = None, stream.call
                    wake, self._wake = self._wake, None
            if following is None:
                break
            stream.call.reply(following[0], last=following[1])
        if wake is not None:
            wake()
        self.finish_if_done(stream)

    def has(self, number: int) -> bool:
        """True if the session has the message of that number."""
        return number <= self._accepted

    @property
    def fresh(self) -> bool:
        """True if no step was requested of it."""
        return not self._accepted

    def submit(self, stream: Stream, work: Work | None) -> bool:
        """Queue the next message of `stream`; True if there is room for another.

        A message that the session has is not applied again, and one of a stream that lost the session is dropped.
        """
        live = self.live
        number, stream.next = stream.next, stream.next + 1
        with self._lock:
            if self._stream is not stream or self._over or self.has(number) or work is None:
                again = self._stream is stream and number <= self.applied
                if work is not None:
                    work.drop(live.model.batcher.capacity)
            else:
                again = False
                self._accepted += 1
                if isinstance(work, (Generating, Search)):
                    self._generations.append(work)
                after_arrivals = None if work.generates else stream.call.run_after_arrivals
                live.model.batcher.submit(live.session, work, after_arrivals)
            # Beyond the window nothing is read, but for one message: a full window lets stops and `received` through.
            room = self._stream is stream and self._accepted - self.applied <= self._window
            self._paused = not room
        if again:
            stream.call.skip()
        return room

    def received(self, stream: Stream, place: Place) -> None:
        """The client of `stream` has the replies up to `place`."""
        with self._lock:
            if self._stream is not stream:
                return
            self._kept.forget(min(place, (self.applied, self._steps)))
            self._told = place[0]
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def stop(self, stream: Stream, tag: int) -> None:
        """End the generations whose requests had this tag, before their next step."""
        with self._lock:
            if self._stream is not stream:
                return
            for work in self._generations:
                if work.tag == tag:
                    work.stopped = True
        self.live.model.batcher.release(self.live.session)

    def refuse(self, stream: Stream, error: ServiceError) -> None:
        """End the session: a message of `stream` cannot be applied, nor anything behind it."""
        if self._stream is stream:
            self.fail(error)

    def finish_if_done(self, stream: Stream) -> None:
        """End the call of a stream that is half-closed, once every message is answered."""
        with self._lock:
            mine = self._stream is stream and self._call is not None and stream.half_closed
            done = mine and self.applied == self._accepted
        if done:
            stream.finish()

    def left(self, stream: Stream, *, finished: bool) -> None:
        """The call of `stream` is over; `finished`: half-closed and answered. The session ends if all was received."""
        with self._lock:
            if self._stream is not stream:
                return
            # A broken call can look half-closed on the lane of threads, and replies may be lost on their way.
            finished = finished and self._told >= self._accepted
            self._stream = self._opening = self._unsent = self._call = None
            if not self._over and not finished:
                self.live.session.detached_s = time.monotonic()
        if finished:
            self._end("closed")

    # The session's side

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Keep and send the reply to one message."""
        self._tell(stream_response(outputs, steps, step_index, work.tag))

    def generated(self, reply: Reply, *, last: bool) -> None:
        """Keep and send one of the replies to a generation."""
        self._tell(generated_response(reply), reply.steps, last=last, generation=True)

    def _tell(self, data: bytes, steps: int = 0, *, last: bool = True, generation: bool = False) -> None:
        with self._lock:
            if self._over:
                return
            if last:
                self.applied += 1
                self._steps = 0
                if generation:
                    self._generations.pop(0)
            else:
                self._steps += steps
            entry = self.place.entry
            if entry is None:
                self._kept.add((self.applied, self._steps), data)
            else:  # before anybody is told
                session, number = self.live.session, self.applied
                entry.keep(number, self._steps, data)
                entry.commit(session.reads, number, session.step_index)
            call, stream = self._call, self._stream
            if self._unsent is not None:
                self._unsent.append((data, last))
            resume = call is not None and self._paused and self._accepted - self.applied <= self._window
            self._paused = self._paused and not resume
        if call is not None and stream is not None:
            call.reply(data, last=last)
            if resume:
                call.resume()
            if stream.half_closed:
                self.finish_if_done(stream)
        elif call is None:
            self._answer_opening()

    def has_room(self, wake: Callable[[], None]) -> bool:
        """True if a generation may continue: a client is there, and has told of most replies."""
        with self._lock:
            call = self._call
            if self._over:
                return True
            if call is None or self._kept.of_generation >= HOLD:
                self._wake = wake
                return False
        if call.has_room(wake):
            return True
        with self._lock:
            self._wake = wake  # for the call that may follow this one
            replaced = self._call is not None and self._call is not call
        if replaced:
            wake()
        return False

    def resume(self) -> None:
        """Nothing to do: how far a stream is read depends on its window."""

    def fail(self, error: ServiceError) -> None:
        """End the session, and its stream if it has one, with a typed error. Later ends are ignored."""
        if not self._end(error.reason.lower()):
            return
        error = self.place.told(error, self.live.session)
        self.live.model.metrics.request_failed(error)
        stream = self._stream
        if stream is not None:
            self._end_stream(stream, error)

    def _end(self, reason: str) -> bool:
        with self._lock:
            over, self._over = self._over, True
        if over:
            return False
        self._kept.clear()
        if self.place.entry is not None:
            self.place.entry.close()
        self._context.sessions.end(self.live, reason)
        self.live.session.listener = ENDED  # breaks the cycle
        return True

    def _end_stream(self, stream: Stream, error: ServiceError) -> None:
        self._context.metrics.error(error)
        stream.call.end(*as_status(error))
