"""A resumable session without its streams: how it begins, its counts, its replies and its end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from streamcell.service.errors import EngineFailed, ServiceError, as_status
from streamcell.service.generation.reply import Reply
from streamcell.service.generation.work import Generating
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.sessions.kept_replies import KeptReplies
from streamcell.service.sessions.session import ENDED, Output, Session, Work
from streamcell.service.sessions.table import Live
from streamcell.service.transport.calls import Call

from .journal_place import JournalPlace
from .openings import Resume, Stream
from .wire import generated_response, stream_response


class KeptSession:
    """A session's listener. Its lock guards its counts; nothing is sent while it is held.

    Attributes:
        live: the session; set when it is opened.
        unsettled: its first state is not there yet, and it answers no opening.
        restoring: a restore to a snapshot is pending, and its client waits for the reply.
        output: the output steps of a message that does not name any.
        applied: messages whose last reply is kept.
        place: in its model's journal, if it outlives the process.
        in_store: a shared store has it, too: it is a `StoredSession`.
    """

    live: Live[Any]

    def __init__(self, context: CallContext[Any], window: int, output: Output) -> None:
        assert context.kept is not None
        self.output = output
        self.applied = 0
        self.place = JournalPlace(window)
        self._context = context
        self.unsettled = self.restoring = False
        self._window = window
        self._room = window  # less what is asked between messages and not answered
        self._kept = KeptReplies(window, context.kept)
        self._lock = threading.Lock()
        self._attempt = 0  # of the latest opening that was taken
        self._accepted = 0  # messages that are applied, run or wait
        self._steps = 0  # timesteps told of message `applied` + 1, a generation
        self._generations: list[Any] = []  # those that have not ended, oldest first
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
        self.in_store = False
        self._waits = 0  # replies to its stream that wait for the store
        self._sending = 0  # replies on their way to the call
        # It takes nothing more; its stream was told that it goes on elsewhere.
        self._leaving = self._moved = False
        # Its generation, of which its client has more than the store had, waits until its message is sent again.
        self.awaits_message = False

    def enter(
        self,
        model: Any,
        peer: str,
        known: tuple[str, bytes],
        opening: tuple[bytes, ...],
        begin: Callable[[Session], None],
        by: str = "",
    ) -> None:
        """Open the session and list it.

        Args:
            model: its model.
            peer: its client's address.
            known: its id, and the hash of its token.
            opening: what it is given.
            begin: gives the session its first state. Other openings find the session only after that.
            by: as for `SessionTable.open`.

        Raises:
            SessionLimit, ServerDraining, SessionNotFound, …: as `SessionTable.open`.
        """
        try:
            with self._lock:
                context = self._context
                self.live = context.sessions.open(model, self, peer, *known, owner=context.grant, by=by)
                self.live.session.opening = opening
                try:
                    begin(self.live.session)
                except BaseException:  # nobody is to find half a session
                    self._over = True
                    self._context.sessions.end(self.live, EngineFailed.reason.lower())
                    raise
        except BaseException:
            self._kept.clear()
            raise

    def settle(self, begin: Callable[[Session], None]) -> None:
        """Give an `unsettled` session its first state, unless it has ended."""
        with self._lock:
            if not self._over:
                begin(self.live.session)

    def settled(self) -> None:
        """Answer its opening: its first state is there."""
        self.unsettled = False
        self._answer_opening()

    def detached(self, source: str, number: int = 0, attempt: int = 0) -> None:
        """Note where its first stream finds it, the messages that it has applied, and its latest opening's attempt.

        `source`: "restart", or "" if that stream does not resume it but is its first.
        """
        self.applied = self._accepted = number
        self._attempt, self._source = attempt, source
        self.live.session.detached_s = time.monotonic()

    def wait_with(self, work: Generating, told: int) -> None:
        """Let a generation of an earlier process, which has told so many timesteps, wait for a client."""
        session = self.live.session
        self._accepted += 1
        self._steps = told
        self._generations.append(work)
        session.queue.append(work)
        session.gates = session.gate = gate = session.gates + 1
        self._wake = partial(self.live.model.batcher.release, session, gate)

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
            before = self._steps
            if last:
                self.applied += 1
                self._steps = 0
                if generation:
                    self._generations.pop(0)
                    self.awaits_message = False
            else:
                self._steps += steps
            entry, session = self.place.entry, self.live.session
            if entry is None:
                self._kept.add((self.applied, self._steps), data)
            elif last:  # before anybody is told
                entry.keep(self.applied, before, data)
                # The other row than the one that the next step writes.
                row = entry.rows - session.writes
                entry.commit(row, self.applied, session.step_index, session.last_output)
            else:
                self.place.tell(session, self._generations[0], self.applied + 1, before, self._steps, data)
            call, stream = self._call, self._stream
            told: bytes | None = data
            if self.in_store:
                told = self._hold_or_tell(data, last)
            self._sending += told is not None and call is not None
            if self._unsent is not None and told is not None:
                self._unsent.append((told, last))
            resume = call is not None and self._paused and self._accepted - self.applied <= self._room
            self._paused = self._paused and not resume
        if self.in_store:
            self._committed()
        if call is not None and stream is not None:
            if told is not None:
                call.reply(told, last=last)
                if self.in_store:
                    self._sent()
                else:  # only the thread that runs the engine gets here
                    self._sending -= 1
            if resume:
                call.resume()
            latest = self._stream
            if latest is not None and latest.half_closed:
                self.finish_if_done(latest)
        elif call is None:
            self._answer_opening()

    def has_room(self, wake: Callable[[], None]) -> bool:
        """True if a generation may continue: a client is attached, and has acknowledged most replies."""
        with self._lock:
            call = self._call
            if self._over:
                return True
            if call is None or self.place.is_full(self._kept):
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
        if not over:
            self._free(reason)
        return not over

    def _free(self, reason: str) -> None:
        """Give back what the session has here: it is over."""
        self._kept.clear()
        if self.place.entry is not None:
            self.place.entry.close()
        self._context.sessions.end(self.live, reason)
        self.live.session.listener = ENDED  # breaks the cycle

    def _end_stream(self, stream: Stream, error: ServiceError) -> None:
        self._context.metrics.error(error)
        stream.call.end(*as_status(error))

    # Of sessions in a shared store alone

    def _hold_or_tell(self, data: bytes, last: bool) -> bytes | None:
        """What goes out as the reply that was just kept; None: it waits for the store. With the lock held."""
        raise NotImplementedError

    def _committed(self) -> None:
        """The session has changed."""
        raise NotImplementedError

    def _may_answer(self) -> bool:
        """True if its client may be told how far it is. With the lock held."""
        raise NotImplementedError

    # Its streams

    def _answer_opening(self) -> None:
        """Answer the latest opening, if the session is at rest."""
        raise NotImplementedError

    def _sent(self) -> None:
        """A reply of a session in a store has gone to its call."""
        raise NotImplementedError

    def finish_if_done(self, stream: Stream) -> None:
        """End the call of a stream that is half-closed, once every message is answered."""
        raise NotImplementedError
