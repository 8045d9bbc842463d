"""How a session's exchange outlives its streams: what it keeps, and what it says when it resumes. Without transport."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from streamcell.client.errors import (
    ProtocolMisuse,
    ServerFault,
    SessionMoved,
    StateBehind,
    StreamCellError,
)
from streamcell.proto import pb

from .held import Held, HeldMessages, is_beside, is_copy, is_numbered, without
from .retries import Tries
from .ticket import Ticket
from .way import Way

RETAIN_BYTES = 4 << 20
_WINDOW = 32  # messages without a reply
_ACKNOWLEDGE = 32  # replies of a generation between two messages that say so; the server waits at 64
_MOST_WINDOW = 1 << 16  # whatever a server says
# Statuses that no StreamCell server gave a reason: of gRPC, a proxy or the network.
_LOST = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
# The session lives, or its server says that it will again.
_ELSEWHERE = {"SESSION_MOVED", "SESSION_ELSEWHERE", "STORE_UNAVAILABLE"}
_RESTARTS = {"SERVER_DRAINING", "ENGINE_LOST"}


class Resumption:
    """Counts a session's messages, and keeps those that may have to be sent again, on the next stream.

    That are those without a reply. If a shared store has the session behind its replies, that are also those that are
    not `durable` yet, with what the caller was told in reply: another server may lack them.

    Attributes:
        received: messages whose last reply has arrived.
        received_steps: timesteps that have arrived of the next one, a generation.
        stored: a shared store has the session.
        durable: messages that the store has; 0 without one.
        window: the most messages without a reply.
        early: replies that have arrived and that the caller has not asked for.
        resumes: how often the session was resumed.
        resent: messages that were answered, and were sent again to a server that lacked them.
        way: where its streams go.
    """

    def __init__(
        self,
        resume_s: float,
        ticket: Ticket | None = None,
        now_s: Callable[[], float] = time.monotonic,
        window: int = _WINDOW,
        retain_bytes: int = RETAIN_BYTES,
    ) -> None:
        """Begin, or go on from a ticket.

        Args:
            resume_s: how long to go on trying without any reply.
            ticket: of a session that exists.
            now_s: the clock.
            window: the most messages without a reply to ask for.
            retain_bytes: the most to keep of a session in a shared store.
        """
        self._resume_s = resume_s
        self._now_s = now_s
        self._session = bytes.fromhex(ticket.session) if ticket else secrets.token_bytes(16)
        self._token = bytes.fromhex(ticket.token) if ticket else secrets.token_bytes(32)
        self.way = Way(self._session, ticket.replica if ticket else "")
        self._attempt = ticket.attempt if ticket else 0
        self._exists = ticket is not None
        self._durability, self.stored = pb.DURABILITY_UNSPECIFIED, False
        self.received = ticket.received if ticket else 0
        self.received_steps = ticket.received_steps if ticket else 0
        self.durable = 0
        self.window = window
        self.early: deque[Any] = deque()
        self.resumes = self.resent = 0
        self._held = HeldMessages(retain_bytes)
        self._step_index = 0  # of the session, in the last reply that was news
        # This stream: its server lacked so many messages that were answered, and has not answered them again; what is
        # to be sent; of what was sent, so many are unanswered; and the server had applied so many.
        self._lacked = 0
        self._outgoing: deque[tuple[Any, bool]] = deque()  # with whether it has a number
        self._unanswered = self._applied = 0
        self._copying = False  # nothing is sent behind a copy before its reply
        self._asked: pb.StreamRequest | None = None  # a copy that has no number, and no answer yet
        self._forked = False  # another session has made it: its first opening is no resume
        self._unacknowledged = 0  # replies of the generation in progress
        self._tries = Tries(resume_s, now_s)

    def ticket(self) -> Ticket:
        """A ticket for what the caller has."""
        received, secrets_ = self.received - len(self.early), (self._session.hex(), self._token.hex())
        return Ticket(*secrets_, received, self.received_steps, self._attempt, self.way.replica)

    def fork(self, durability: pb.Durability) -> tuple[Resumption, pb.Fork]:
        """What a fork of the session needs to be resumed, and the fields that ask for the fork."""
        ticket = Ticket(secrets.token_hex(16), secrets.token_hex(32))
        fork = Resumption(self._resume_s, ticket, self._now_s, retain_bytes=self._held.most_bytes)
        fork._forked = True
        fork.way.follow(self.way)
        asked = pb.Fork(session=fork._session, token=fork._token, window=_WINDOW, durability=durability)
        return fork, asked

    def opening(self, asked: pb.OpenSession) -> pb.OpenSession:
        """`asked` as the next opening of this session."""
        opening = pb.OpenSession(received_steps=self.received_steps, **self._identity())
        opening.MergeFrom(asked)
        if self._exists:
            opening.ClearField("snapshot")
        return opening

    def _identity(self) -> dict[str, Any]:
        """The fields of the next opening that identify the session and say what its client has."""
        self.way.begin()
        self._attempt = max(self._attempt + 1, int(time.time() * 1000))
        return {
            "session": self._session,
            "token": self._token,
            "window": self.window,
            "attempt": self._attempt,
            "received": self.received,
            "held": self._held.lowest(self.received),
            "resume": self._exists,
        }

    def greeted(self, reply: Any) -> None:
        """Look at the first reply of a stream.

        Raises:
            SessionMoved: the session goes on elsewhere already, or without the proxy that this stream goes through.
        """
        self._check_moved(reply)
        stored = reply.opened.durability >= pb.DURABILITY_STORE_ASYNC
        if not self.way.opened(reply.opened, stored=stored):
            raise SessionMoved(
                f"the session's server is reached at {self.way.address}", reason="SESSION_MOVED"
            )

    def reopened(self, opened: pb.SessionOpened) -> int:
        """The server has answered: how many replies to an earlier process's messages follow. `due` has what it lacks.

        Raises:
            ProtocolMisuse: the server does not know such sessions.
            StateBehind: it lacks messages that cannot be sent again.
            ServerFault: MALFORMED_REPLY.
        """
        if not opened.window:
            raise ProtocolMisuse(
                "this server does not know sessions that can be resumed: update it, or open one without resume",
                reason="DURABILITY_UNSUPPORTED",
            )
        self._durability = opened.durability
        self.stored = opened.durability >= pb.DURABILITY_STORE_ASYNC
        lacked = max(0, self.received - opened.applied)
        lacks_steps = self._check_lacked(opened, lacked)
        strange = max(0, opened.applied - self._newest)
        if strange > min(opened.window, _MOST_WINDOW):
            raise ServerFault(
                f"the server has applied {opened.applied} messages, and {self._newest} were sent",
                reason="MALFORMED_REPLY",
            )
        self._held.of(opened)
        self.resumes += self._exists and not self._forked
        self.resent += lacked + lacks_steps
        self._exists, self._forked = True, False
        self.window = opened.window
        self._held.sent.extend([None] * strange)
        self._applied, self._lacked = opened.applied, lacked
        self._unanswered, self._copying = 0, False
        later = self._held.behind(lacked, max(0, opened.applied - self.received))
        self._outgoing = deque((each.again(), True) for each in later)
        if self._asked is not None:
            self._outgoing.append((self._asked, False))
        self._note_durable(opened.durable)
        return strange

    def _check_lacked(self, opened: pb.SessionOpened, lacked: int) -> bool:
        """True if the server lacks timesteps of a generation that has not ended.

        Raises:
            StateBehind: it lacks what cannot be sent again.
        """
        about = {"applied": str(opened.applied), "received": str(self.received)}
        if lacked > len(self._held.told):
            raise StateBehind(
                f"the session has applied {opened.applied} messages, {self.received} were answered",
                reason="STATE_BEHIND",
                metadata=about,
            )
        there = opened.applied_steps if opened.applied == self.received else 0
        if opened.applied > self.received or there >= self.received_steps:
            return False
        first = self._held.sent[0] if self._held.sent else None
        if first is None or first.foreign:
            raise StateBehind(
                f"the session has applied {there} timesteps of message {self.received + 1}, {self.received_steps} "
                "were told",
                reason="STATE_BEHIND",
                metadata=about,
            )
        return True

    def due(self) -> list[Any]:
        """What to send now, in this order: the window has room for it."""
        due = []
        while self._outgoing:
            request, numbered = self._outgoing[0]
            if (self._copying or self._unanswered >= self.window) and not is_beside(request):
                break
            self._outgoing.popleft()
            self._unanswered += numbered
            self._copying = self._copying or is_copy(request)
            due.append(request)
        return due

    @property
    def is_due(self) -> bool:
        """True if `due` may have something."""
        return bool(self._outgoing)

    def adopt(self, request: Any) -> None:
        """Let `request` stand for a generation of an earlier process, which goes on."""
        self._held.sent.append(Held(request, foreign=True))
        self._outgoing.append((request, True))

    def check(self, request: Any) -> None:
        """Check that a message may be sent.

        Raises:
            MessageTooLarge: it is larger than all that may be kept of the session.
        """
        self._held.check(request)

    def has_room(self, request: Any) -> bool:
        """True if a message may be sent before another reply has arrived, or the store has more."""
        full = self._outgoing or max(len(self._held.sent), self._unanswered) >= self.window
        return is_beside(request) if full else self._held.fits(request) or is_beside(request)

    @property
    def waits_for_store(self) -> bool:
        """True if every message is answered, and the store does not have them all."""
        return not self._held.sent and bool(self._held.told)

    def put(self, request: Any) -> None:
        """Let `due` have a message, and keep it if it gets a reply."""
        if numbered := is_numbered(request):
            self._held.add(request)
        elif not is_beside(request):
            self._asked = request
        self._outgoing.append((request, numbered))

    def took(self, reply: Any) -> None:
        """Count a reply that has arrived, and put it into `early` if it is news. `due` may have something then.

        Raises:
            SessionMoved: the session goes on elsewhere; nothing else of this stream counts.
            ServerFault: MALFORMED_REPLY.
        """
        if self.stored:
            self._check_moved(reply)
            if reply.HasField("durable"):
                self._note_durable(reply.durable)
                if len(reply.ListFields()) == 1:
                    return
        copied = reply.HasField("copied")
        self._copying = self._copying and not copied
        generated = reply.generated if reply.HasField("generated") else None
        last = generated is None or bool(generated.stop_reason)
        if self._lacked:
            self._took_again(reply, last=last)
            return
        if self._asked is not None and copied:
            self._tries.answered()
            self._asked = None
            self.early.append(reply)
            return
        if generated is not None and self.received_steps and self.stored:
            # The steps that a server has again, or had when it told that the generation has ended.
            known = self._step_index - (reply.step_index - generated.steps)
            if known >= generated.steps and not last:
                self._acknowledge()
                return
            if known > generated.steps:
                raise ServerFault(
                    f"a generation ended at step {reply.step_index}, and was at {self._step_index} before",
                    reason="MALFORMED_REPLY",
                )
            reply = without(reply, known) if known > 0 else reply
        if not self._held.sent:
            raise ServerFault("the server sent a reply that belongs to no message", reason="MALFORMED_REPLY")
        self._tries.answered()
        self.early.append(reply)
        self._held.reply(reply)
        self._step_index = reply.step_index
        if last:
            self._took_last()
        else:
            self.received_steps += reply.generated.steps
            self._acknowledge()

    def _took_again(self, reply: Any, *, last: bool) -> None:
        """Drop a reply to a message that was answered before."""
        if not last:
            self._acknowledge()
            return
        before = self._held.told[-self._lacked].step_index
        if reply.step_index != before:
            text = f"a message sent again came to step {reply.step_index}, and to step {before} before"
            raise ServerFault(text, reason="MALFORMED_REPLY")
        self._lacked -= 1
        self._unanswered -= 1
        self._unacknowledged = 0
        self._forget()

    def _took_last(self) -> None:
        """The last reply to the oldest message has arrived."""
        self.received += 1
        self.received_steps = self._unacknowledged = 0
        if self.received > self._applied:
            self._unanswered = max(0, self._unanswered - 1)
        self._held.answered()
        if self.stored:
            self._forget()

    def _acknowledge(self) -> None:
        """Say that so many replies to a generation have arrived, if it is time."""
        self._unacknowledged += 1
        if self._unacknowledged == _ACKNOWLEDGE:
            self._unacknowledged = 0
            acknowledged = pb.StreamRequest(received=self.received, received_steps=self.received_steps)
            self._outgoing.appendleft((acknowledged, False))

    def _note_durable(self, durable: int) -> None:
        """The store has so many messages."""
        if durable > self._newest:
            raise ServerFault(
                f"the server says that {durable} messages are stored, and {self._newest} were sent",
                reason="MALFORMED_REPLY",
            )
        self.durable = max(self.durable, durable)
        self._forget()

    def _forget(self) -> None:
        """Drop the messages that nobody can ask for: both the store and the caller have them."""
        if self._durability == pb.DURABILITY_STORE_SYNC:  # no reply leaves before
            self.durable = max(self.durable, self.received)
        self._held.forget(max(self._lacked, self.received - self.durable))

    def _check_moved(self, reply: Any) -> None:
        if reply.HasField("moved"):
            self.way.moved(reply.moved)
            raise SessionMoved("the session goes on with another server", reason="SESSION_MOVED")

    def goodbye(self) -> Any:
        """Says that every reply has arrived: the session ends with this stream."""
        return pb.StreamRequest(received=self.received)

    @property
    def _newest(self) -> int:
        """The number of the newest message that was sent."""
        return self.received + len(self._held.sent)

    def pause_s(self, error: StreamCellError) -> float | None:
        """Seconds to wait before the next try, after `error`; None if there is none: the session is over."""
        if not self._is_lost(error):
            return None
        self.way.failed(error)
        return self._tries.pause_s(error.retry_after_s or 0.0)

    def _is_lost(self, error: StreamCellError) -> bool:
        """True if `error` ended the stream and not the session."""
        if self.way.is_trial:  # whatever is there, the client's target knows better
            return True
        if error.reason in _ELSEWHERE or (error.reason == "SESSION_NOT_FOUND" and self.way.is_unknown_here()):
            return True
        if error.reason in _RESTARTS and self._durability >= pb.DURABILITY_PROCESS:
            return True
        if (
            self.stored and error.retry_after_s is not None
        ):  # that server has no room now, and the store has the state
            return True
        # No StreamCell server gave a reason: gRPC, a proxy or the network did.
        unreasoned = error.reason in (error.code.name, "STREAM_ENDED")
        known = self._exists and error.code is not grpc.StatusCode.DEADLINE_EXCEEDED
        return unreasoned and (known or error.code in _LOST)
