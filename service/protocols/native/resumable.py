"""A session that outlives its streams: counts its messages, keeps replies, and goes on with whoever has its token.

Both ends number the messages 1, 2, …. A message is *applied* once its last reply is kept. A takeover is, in this order:
the old stream is detached, messages of which nothing has run are dropped, what runs is let finish, and only then the
new stream is told how many messages are applied. So no message is applied twice: docs/durable-sessions.md.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from streamcell.proto import pb
from streamcell.service.errors import ServiceError
from streamcell.service.generation.search_work import Search
from streamcell.service.generation.work import Generating
from streamcell.service.sessions.kept_replies import Place
from streamcell.service.sessions.resume_errors import SessionTakenOver
from streamcell.service.sessions.session import Aside, Work
from streamcell.service.sessions.table import not_found

from .kept_session import KeptSession
from .messages import opened
from .openings import Resume, Stream, compare


class Resumable(KeptSession):
    """A session's listener, and what its streams ask of it; a whole stream of frames is one, too."""

    def attach(self, stream: Stream, opening: Resume) -> None:
        """Let `stream` go on with the session, instead of the stream that has it.

        Raises:
            SessionTakenOver: a later opening was taken before.
            SessionNotFound: it has ended.
        """
        with self._lock:
            live = self.live
            if self._over:
                raise not_found(live.session.session_id)
            if opening.late(self._attempt):
                raise SessionTakenOver("a later opening has taken this session; this one changes nothing")
            self._attempt = opening.attempt
            if self.place.entry is not None:
                self.place.entry.attempt(opening.attempt)
            old, self._stream = self._stream, stream
            if old is not None:
                self._source = "stream"
            self._opening, self._unsent, self._call = opening, None, None
            self._paused, self._waits = False, 0
            dropped = live.model.batcher.drop_waiting(live.session)
            asked = sum([isinstance(each, Aside) and not each.numbered for each in dropped])
            self._accepted -= len(dropped) - asked
            self._room += asked
            self.restoring = False
            gone = set(map(id, dropped))
            self._generations = [each for each in self._generations if id(each) not in gone]
            live.session.detached_s = None
            live.session.peer = stream.call.peer
            live.session.last_used_s = time.monotonic()
            # A generation that has begun goes on by itself, so nobody waits for its end, and replies come unasked.
            self._rest = self.applied if self._generations else self._accepted
            behind = self.in_store and (self.applied, self._steps) < opening.place
            self.awaits_message = behind and bool(self._generations)
            if self._generations:
                stream.call.read_on()
        if old is not None:
            self._end_stream(old, SessionTakenOver("another opening has taken this session"))
        self._answer_opening()

    def _answer_opening(self) -> None:
        """Answer the latest opening, if the session is at rest: what is applied, and what its client lacks."""
        with self._lock:
            asked, stream = self._opening, self._stream
            if asked is None or stream is None or self.unsettled or self.applied < self._rest:
                return
            if self.in_store and not self._may_answer():
                return
            self._opening = None
            lacked = self.place.lacked(asked.place, self.applied, self._steps, self._kept)
            error, replies = compare(asked, self.applied, lacked)
            if error is None:
                stream.next = stream.next or self.applied + 1
                # The last one answers the opening: a call need not send what comes unasked behind it. With a generation
                # in progress the call sends all, and the last one may be a reply to some of its steps.
                ends = 0 if self._generations else len(replies)
                sent = [self._greeting(), *replies]
                self._unsent = deque([(data, at == ends) for at, data in enumerate(sent)])
            else:
                self._stream = None
                self.live.session.detached_s = time.monotonic()
            source, self._source = self._source, "detached"
        if source:
            result = "resumed" if error is None else error.reason.lower()
            self.live.model.metrics.session_resumed(source, result, len(replies))
            self._context.sessions.tell_resumed(self.live, source, result, stream.call)
        if error is None:
            self._send_unsent(stream)
        else:
            self._end_stream(stream, error)

    def _greeting(self) -> bytes:
        about = self._about()
        about.applied_steps = self._steps
        if self._generations:
            about.generating = self._generations[0].tag
        return pb.StreamResponse(opened=about).SerializeToString()

    def _about(self) -> pb.SessionOpened:
        """What the client of each opening is told, of a session or of a stream of frames."""
        context = self._context
        sessions, replica = context.sessions, context.replica
        about = opened(self.live, sessions.idle_timeout_s, context.limits)
        about.applied, about.step_index = self.applied, self.live.session.step_index
        about.durability = self.place.durability
        about.linger_s, about.window = sessions.linger_s, self._window
        about.replica, about.address = replica.name, replica.address
        return about

    def _send_unsent(self, stream: Stream) -> None:
        """Send what stands behind the opening's reply, and then let replies go straight to the call."""
        wake: Callable[[], None] | None = None
        resume = False
        while True:
            with self._lock:
                if self._stream is not stream or self._unsent is None:
                    return
                following = self._unsent.popleft() if self._unsent else None
                if following is None:
                    self._unsent, self._call = None, stream.call
                    wake = self._may_wake()
                    # A reply that went out from here has made room, and resumed nothing.
                    resume = self._paused and self._accepted - self.applied <= self._room
                    self._paused = self._paused and not resume
            if following is None:
                break
            stream.call.reply(following[0], last=following[1])
        if wake is not None:
            wake()
        if resume:
            stream.call.resume()
        self.finish_if_done(stream)

    def has(self, number: int) -> bool:
        """True if the session has the message of that number."""
        return number <= self._accepted

    @property
    def fresh(self) -> bool:
        """True if it has no output that a generation could go on from, and none is to come."""
        if self.unsettled:  # its snapshot may have one: the engine thread will know
            return False
        return self.applied == self._accepted and not self.live.session.last_output

    def submit(self, stream: Stream, work: Any) -> bool:
        """Queue the next message of `stream`, None if the session has it; True if there is room for another.

        A message that the session already has is not applied again. One of a stream that lost the session is dropped.
        """
        live = self.live
        number, stream.next = stream.next, stream.next + 1
        with self._lock:
            if self._stream is not stream or self._over or self._leaving or self.has(number) or work is None:
                drops = (self._over or self._leaving) and not self.has(number)
                unanswered = self._stream is stream and (drops or number <= self.applied)
                if work is not None:
                    work.drop(live.model.batcher.capacity)
            else:
                unanswered = False
                self._accepted += 1
                if work.generates:
                    self._note(work)
                after_arrivals = None if work.generates else stream.after_arrivals
                live.model.batcher.submit(live.session, work, after_arrivals)
            # Beyond the window nothing is read, but for one message: a full window lets stops and `received` through.
            room = self._stream is stream and self._accepted - self.applied <= self._room
            self._paused = not room
        if unanswered:
            stream.call.skip()
        return room

    def _note(self, work: Work) -> None:
        if isinstance(work, (Generating, Search)):
            self._generations.append(work)
        else:
            self.restoring = True

    def ask(self, stream: Stream, aside: Aside) -> bool:
        """Queue what `stream` asks for between two messages; True if there is room for another message.

        It has no number, and its answer is not kept; until it is answered it takes a place in the window.
        """
        with self._lock:
            mine = self._stream is stream and not (self._over or self._leaving)
            if mine:
                self._room -= 1
                self.live.model.batcher.submit(self.live.session, aside)
            room = mine and self._accepted - self.applied <= self._room
            self._paused = not room
        return room

    def answer(self, stream: Stream, data: bytes) -> None:
        """Answer what `stream` has asked for, if it still has the session."""
        with self._lock:
            self._room += 1
            latest = None if self._over else self._call  # of a later stream, if one has taken the session
            call = latest if self._stream is stream else None
            told: bytes | None = data
            if self.in_store and self._stream is stream:
                told = self._hold_or_tell(data, True)
            self._sending += told is not None and call is not None
            if call is None and self._stream is stream and self._unsent is not None and told is not None:
                self._unsent.append((told, True))
            resume = self._paused and self._accepted - self.applied <= self._room and latest is not None
            self._paused = self._paused and not resume
            attached = self._stream
        if call is not None and told is not None:
            call.reply(told)
            if self.in_store:
                self._sent()
            else:
                self._sending -= 1
        if resume and latest is not None:
            latest.resume()
        if attached is not None:
            self.finish_if_done(attached)

    def rewound(self, data: bytes) -> None:
        """Keep and send the reply to a restore; if it was refused, the reply says why."""
        self.restoring = False
        self._tell(data)

    @property
    def answers(self) -> bool:
        """True once its latest opening is answered, or is about to be."""
        return self._opening is None

    def received(self, stream: Stream, place: Place) -> None:
        """The client of `stream` has the replies up to `place`."""
        with self._lock:
            if self._stream is not stream:
                return
            self._kept.forget(min(place, (self.applied, self._steps)))
            self.place.acknowledge(place)
            self._told = place[0]
            wake = self._may_wake()
        if wake is not None:
            wake()

    def _may_wake(self) -> Callable[[], None] | None:
        """What lets its generation go on, if that may: each time it takes a step. With the lock held."""
        if self._wake is None or self.awaits_message or self.place.is_full(self._kept):
            return None
        wake, self._wake = self._wake, None
        return wake

    def stop(self, stream: Stream, tag: int) -> None:
        """End the generations whose requests had this tag, before their next step."""
        with self._lock:
            if self._stream is not stream:
                return
            stopped = [work for work in self._generations if work.tag == tag]
            for work in stopped:
                work.stopped = True
        if stopped:
            self.live.model.batcher.release(self.live.session)

    def refuse(self, stream: Stream, error: ServiceError) -> None:
        """End the session: a message of `stream` cannot be applied, nor anything behind it."""
        if self._stream is stream:
            self.fail(error)

    def finish_if_done(self, stream: Stream) -> None:
        """End the call of a stream that is half-closed, once every message is answered."""
        with self._lock:
            mine = self._stream is stream and self._call is not None and stream.half_closed
            answered = self.applied == self._accepted and self._room == self._window
            done = mine and (self._moved or (answered and not (self._waits or self._sending)))
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
            self._waits = 0
            if not self._over and not finished:
                self.live.session.detached_s = time.monotonic()
        if finished:
            self._end("closed")
