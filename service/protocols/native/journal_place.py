"""A resumable session's place in its model's journal, if it outlives the server's process, and what has room there."""

from __future__ import annotations

from streamcell.card import Signature
from streamcell.proto import pb
from streamcell.service.durability.found import Found
from streamcell.service.durability.journal import Entry, Journal
from streamcell.service.errors import MessageTooLarge, ServerDraining, ServiceError
from streamcell.service.sessions.kept_replies import KeptReplies, Place
from streamcell.service.sessions.resume_errors import DurabilityUnsupported
from streamcell.service.sessions.session import Output, Session

from .openings import Resume


def journal_for(asked: Resume, journal: Journal | None) -> Journal | None:
    """The journal that a new session goes to, `journal` being its model's.

    Raises:
        DurabilityUnsupported: the session would not outlive what its client asks for.
    """
    if asked.durability > pb.DURABILITY_NONE and journal is None:
        raise DurabilityUnsupported(
            "sessions of this model do not outlive the server's process: ask for DURABILITY_NONE, or for nothing",
            asked=asked.durability,
            has=pb.DURABILITY_NONE,
        )
    return None if asked.durability == pb.DURABILITY_NONE else journal


def record(
    asked: Resume, window: int, request: pb.OpenSession, signature: Signature, session: Session
) -> Found:
    """What the journal keeps of a new session. A restart needs of its opening what the state does not have.

    The client's own message may have any number of unknown fields, so it is made anew from the values that were taken.
    """
    given = [
        pb.OpenInput(name=tensor.name, value=value)
        for tensor, value in zip(signature.open_inputs, session.opening, strict=True)
    ]
    opening = pb.OpenSession(output_mode=request.output_mode, inputs=given)
    return Found(
        slot=session.slot,
        row=0,
        session=bytes.fromhex(asked.session_id),
        token_hash=session.token_hash,
        attempt=0,
        window=window,
        opening=opening.SerializeToString(),
        number=0,
        stamp=0,
    )


class JournalPlace:
    """The place; without `enter` the session is in no journal, and everything has room.

    Attributes:
        entry: the session's entry; None if it is in no journal.
    """

    __slots__ = ("_most_reply_bytes", "_window", "entry")

    def __init__(self, window: int) -> None:
        """`window`: the session's."""
        self.entry: Entry | None = None
        self._window = window
        self._most_reply_bytes = 1 << 62

    def enter(self, session: Session, journal: Journal, found: Found) -> None:
        """Give the session its entry."""
        self.entry = session.journal_entry = journal.open(session.slot, found)
        self._most_reply_bytes = journal.most_reply_bytes(self._window)

    def lacked(self, place: Place, applied: int, kept: KeptReplies) -> list[bytes] | None:
        """The replies that a client at `place` lacks; None if one is gone. Without an entry `kept` has them."""
        return kept.since(place) if self.entry is None else self.entry.since(place[0], applied)

    @property
    def durability(self) -> pb.Durability:
        """What the session survives."""
        return pb.DURABILITY_NONE if self.entry is None else pb.DURABILITY_PROCESS

    def told(self, error: ServiceError, session: Session) -> ServiceError:
        """`error`, which ends the session, as its client is told of it: a shutdown does not end one in a journal."""
        if self.entry is None or not isinstance(error, ServerDraining):
            return error
        return ServerDraining(
            "the server is shutting down and keeps the session: resume it when the server is back",
            session_id=session.session_id,
        )

    def check_reply(self, signature: Signature, steps: int) -> None:
        """Raise MessageTooLarge if the journal has no room for a reply of `steps` timesteps."""
        size = _reply_bytes(signature, steps)
        if size > self._most_reply_bytes:
            raise MessageTooLarge(
                f"the reply to this message would have {size} bytes, and the journal has room for "
                f"{self._most_reply_bytes} with a window of {self._window}: send fewer timesteps at once, ask for "
                "OUTPUT_MODE_LAST, or open the session with a smaller window",
                limit=self._most_reply_bytes,
                got=size,
            )

    def check_generates(self) -> None:
        """Raise DurabilityUnsupported if the session is in a journal, which cannot hold a generation."""
        if self.entry is not None:
            raise DurabilityUnsupported(
                "a session that outlives the server's process cannot generate: open it with DURABILITY_NONE",
                asked=pb.DURABILITY_PROCESS,
                has=pb.DURABILITY_NONE,
            )

    def most_steps(self, signature: Signature, output: Output, steps: int) -> int:
        """How many of at most `steps` timesteps a message may have whose reply is not checked one by one."""
        if output is not Output.ALL:
            return steps
        each = _reply_bytes(signature, 1) - _reply_bytes(signature, 0)
        return min(steps, (self._most_reply_bytes - _reply_bytes(signature, 0)) // each) if each else steps


def _reply_bytes(signature: Signature, steps: int) -> int:
    """Bytes of an encoded reply of `steps` timesteps, at most."""
    return 64 + sum(8 + steps * tensor.step_bytes for tensor in signature.outputs)
