"""How a session's exchange outlives its streams: what it keeps, and what it says when it resumes. Without transport."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from streamcell.client.errors import ProtocolMisuse, StateBehind, StreamCellError
from streamcell.proto import pb

_WINDOW = 32  # messages without a reply
_ACKNOWLEDGE = 32  # replies of a generation between two messages that say so; the server waits at 64
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
# Statuses that no StreamCell server gave a reason: of gRPC, a proxy or the network.
_LOST = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Ticket:
    """What another process needs to go on with a session. Whoever has it owns the session: keep it secret.

    Attributes:
        session: the session's id, in hexadecimal.
        token: the secret, in hexadecimal.
        received: the messages whose replies were returned to the caller.
        received_steps: timesteps that have arrived of a generation in progress.
        attempt: of the last opening.
    """

    session: str
    token: str
    received: int = 0
    received_steps: int = 0
    attempt: int = 0

    def to_json(self) -> str:
        """The ticket as a text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Ticket:
        """The ticket that `to_json` has written. Raises ValueError or TypeError if it is none."""
        return cls(**json.loads(text))


class Resumption:
    """Counts a session's messages, and keeps those without a reply, to send them again on the next stream.

    Attributes:
        received: messages whose last reply has arrived.
        received_steps: timesteps that have arrived of the next one, a generation.
        window: the most messages without a reply.
        early: replies that have arrived before the caller asked for them.
        resumes: how often the session was resumed.
    """

    def __init__(
        self, resume_s: float, ticket: Ticket | None = None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`resume_s`: how long to go on trying without any reply; `ticket`: of a session that exists."""
        self._resume_s = resume_s
        self._now_s = now_s
        self._session = bytes.fromhex(ticket.session) if ticket else secrets.token_bytes(16)
        self._token = bytes.fromhex(ticket.token) if ticket else secrets.token_bytes(32)
        self._attempt = ticket.attempt if ticket else 0
        self._exists = ticket is not None
        self._outlives_server = False
        self.received = ticket.received if ticket else 0
        self.received_steps = ticket.received_steps if ticket else 0
        self.window = _WINDOW
        self.early: deque[pb.StreamResponse] = deque()
        self.resumes = 0
        # The messages from `received` + 1 on; None: of an earlier process.
        self._sent: deque[pb.StreamRequest | None] = deque()
        self._unacknowledged = 0  # replies of the generation in progress
        self._tries = 0  # since the last reply
        self._lost_s: float | None = None  # when the first of them began

    def ticket(self) -> Ticket:
        """A ticket for what the caller has."""
        return Ticket(
            self._session.hex(),
            self._token.hex(),
            self.received - len(self.early),
            self.received_steps,
            self._attempt,
        )

    def opening(self, asked: pb.OpenSession) -> pb.OpenSession:
        """`asked` as the next opening of this session."""
        self._attempt = max(self._attempt + 1, int(time.time() * 1000))
        unheld = 0
        while unheld < len(self._sent) and self._sent[unheld] is None:
            unheld += 1
        opening = pb.OpenSession(
            session=self._session,
            token=self._token,
            window=_WINDOW,
            attempt=self._attempt,
            received=self.received,
            received_steps=self.received_steps,
            held=self.received + unheld + 1,
            resume=self._exists,
        )
        opening.MergeFrom(asked)
        return opening

    def reopened(self, opened: pb.SessionOpened) -> tuple[int, list[pb.StreamRequest]]:
        """The server has answered: how many replies to an earlier process's messages follow, and what to send now.

        Raises:
            ProtocolMisuse: the server does not know such sessions.
            StateBehind: it lacks messages that cannot be sent again.
        """
        if not opened.window:
            raise ProtocolMisuse(
                "this server does not know sessions that can be resumed: update it, or open one without resume",
                reason="DURABILITY_UNSUPPORTED",
            )
        if opened.applied < self.received:
            raise StateBehind(
                f"the session has applied {opened.applied} messages, {self.received} were answered",
                reason="STATE_BEHIND",
            )
        self.resumes += self._exists
        self._exists = True
        self.window = opened.window
        self._outlives_server = opened.durability >= pb.DURABILITY_PROCESS
        strange = max(0, opened.applied - self.received - len(self._sent))
        self._sent.extend([None] * strange)
        later = [
            request
            for number, request in enumerate(self._sent, self.received + 1)
            if number > opened.applied and request is not None
        ]
        return strange, later

    def sent(self, request: Any) -> None:
        """Keep a message, if it gets a reply."""
        if not request.HasField("stop_generation") and not request.HasField("received"):
            self._sent.append(request)

    def took(self, reply: pb.StreamResponse) -> pb.StreamRequest | None:
        """Count a reply that has arrived; returns the message that acknowledges it, if that is due."""
        self._tries, self._lost_s = 0, None
        if reply.HasField("generated") and not reply.generated.stop_reason:
            self.received_steps += reply.generated.steps
            self._unacknowledged += 1
            if self._unacknowledged < _ACKNOWLEDGE:
                return None
            self._unacknowledged = 0
            return pb.StreamRequest(received=self.received, received_steps=self.received_steps)
        self.received += 1
        self.received_steps = self._unacknowledged = 0
        if self._sent:
            self._sent.popleft()
        return None

    def goodbye(self) -> pb.StreamRequest:
        """Says that every reply has arrived: the session ends with this stream."""
        return pb.StreamRequest(received=self.received)

    @property
    def full(self) -> bool:
        """True if no message may be sent before a reply has arrived."""
        return len(self._sent) >= self.window

    def pause_s(self, error: StreamCellError) -> float | None:
        """Seconds to wait before the next try, after `error`; None if there is none: the session is over."""
        restarts = self._outlives_server and error.reason == "SERVER_DRAINING"
        lost = error.reason in (error.code.name, "STREAM_ENDED") and error.code in _LOST
        if not lost and not restarts:
            return None
        now_s = self._now_s()
        self._lost_s = now_s if self._lost_s is None else self._lost_s
        tries, self._tries = self._tries, self._tries + 1
        if not tries:
            return 0.0
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 10)) * random.uniform(0.5, 1)
        return pause_s if now_s + pause_s - self._lost_s <= self._resume_s else None
