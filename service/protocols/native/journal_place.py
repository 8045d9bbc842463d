"""A resumable session's place in its model's journal, if it outlives the server's process, and what has room there."""

from __future__ import annotations

from collections.abc import Sequence

from streamcell.card import Signature
from streamcell.proto import pb
from streamcell.service.durability.found import Found
from streamcell.service.durability.frame_entry import FrameEntry
from streamcell.service.durability.journal import Entry, Journal
from streamcell.service.durability.layout import PLACES, SESSION
from streamcell.service.durability.told import HOLD as HOLD_TOLD
from streamcell.service.durability.told import ToldReply
from streamcell.service.errors import MessageTooLarge, ServerDraining, ServiceError
from streamcell.service.generation.search_work import Search
from streamcell.service.generation.work import Generating
from streamcell.service.protocols.common.requests import OUTPUT_MODES
from streamcell.service.sessions.kept_replies import KeptReplies, Place
from streamcell.service.sessions.resume_errors import DurabilityUnsupported
from streamcell.service.sessions.session import Output, Session

HOLD = 64  # replies of a generation that the client has not told it has: then it waits
_HYPOTHESIS_BYTES, _CLASS_BYTES = 48, 5  # of an encoded result of a beam search, at most


STORE_LEVELS: tuple[pb.Durability, ...] = (pb.DURABILITY_STORE_ASYNC, pb.DURABILITY_STORE_SYNC)
_LIVES = {
    pb.DURABILITY_NONE: "the server's process",
    pb.DURABILITY_PROCESS: "the server's machine",
    pb.DURABILITY_STORE_ASYNC: "a client and the server's machine that die together",
}


def level_for(
    asked: int, journal: Journal | None, in_store: Sequence[pb.Durability] = (), what: str = "sessions"
) -> pb.Durability:
    """What a new session will outlive.

    Args:
        asked: what its client needs; DURABILITY_UNSPECIFIED: as much as there is.
        journal: its model's.
        in_store: the levels at which the shared store takes it.
        what: what it is, for the error.

    Raises:
        DurabilityUnsupported: the session would not outlive what its client asks for.
    """
    levels = [pb.DURABILITY_NONE]
    if journal is not None and not journal.temporary:
        levels.append(pb.DURABILITY_PROCESS)
    if journal is not None:
        levels += in_store
    has = levels[-1]
    if asked == pb.DURABILITY_UNSPECIFIED:
        return has
    for level in levels:
        if level == asked:
            return level
    if asked < has:
        text = "this server has no folder for sessions (--journal-dir), and keeps them in its store"
    else:
        text = f"{what} of this model do not outlive {_LIVES[has]}"
    raise DurabilityUnsupported(
        f"{text}: ask for {pb.Durability.Name(has)}, or for nothing",
        asked=asked,
        has=has,
    )


def record(
    session_id: str,
    window: int,
    output: Output,
    signature: Signature,
    session: Session,
    steps: int = 0,
    kind: int = SESSION,
) -> Found:
    """What the journal keeps of a new session: the parts of its opening that a restart needs beside the state.

    The client's own message may have any number of unknown fields, so it is made anew from the values that were taken.
    `steps`: timesteps that led to the state in its slot. `kind`: SESSION, STORED.
    Its `model` is the tenant: the journal is the model's own.
    """
    given = [
        pb.OpenInput(name=tensor.name, value=value)
        for tensor, value in zip(signature.open_inputs, session.opening, strict=True)
    ]
    opening = pb.OpenSession(model=session.tenant, output_mode=OUTPUT_MODES[output], inputs=given)
    return Found(
        slot=session.slot,
        row=0,
        session=bytes.fromhex(session_id),
        token_hash=session.token_hash,
        attempt=0,
        window=window,
        opening=opening.SerializeToString(),
        number=0,
        steps=steps,
        last=session.last_output if steps else b"",
        kind=kind,
    )


class JournalPlace:
    """The place; without `expect` the session is in no journal, and everything has room.

    Attributes:
        entry: the session's entry; None if it has none yet, or is in no journal.
        level: what the session survives, once it has its entry.
        most_reply_bytes: of a reply.
        generates: the bytes of the largest reply to a generation's steps, and of the largest request for one; None if
            the session is in no journal, or its model cannot generate.
    """

    __slots__ = ("_window", "entry", "generates", "level", "most_reply_bytes")

    def __init__(self, window: int) -> None:
        """`window`: the session's."""
        self.entry: Entry | FrameEntry | None = None
        self._window = window
        self.level = pb.DURABILITY_PROCESS
        self.most_reply_bytes = 1 << 62
        self.generates: tuple[int, int] | None = None

    def expect(self, journal: Journal) -> None:
        """From now on messages arrive for a session that the journal has, or will have before any of them runs."""
        self.most_reply_bytes = journal.most_reply_bytes(self._window)
        if journal.counts.last_bytes:
            self.generates = journal.counts.reply_bytes // PLACES, journal.counts.request_bytes

    def enter(self, session: Session, journal: Journal, found: Found) -> None:
        """Give the session its entry."""
        self.expect(journal)
        self.entry = session.journal_entry = journal.open(session.slot, found)

    def lacked(self, place: Place, applied: int, steps: int, kept: KeptReplies) -> list[bytes] | None:
        """The replies that a client at `place` lacks; None if one is gone. Without an entry `kept` has them.

        So many messages are applied, and `steps` timesteps told of the next one. Of a generation in progress the client
        has what it says: its last acknowledgement may have gone down with its connection.
        """
        if self.entry is None:
            if place[1]:
                kept.forget(min(place, (applied, steps)))
            return kept.since(place)
        self.acknowledge(place)
        return self.entry.since(place, applied, steps)

    def acknowledge(self, place: Place) -> None:
        """The client has the replies up to `place`: a generation may continue."""
        if self.entry is not None and self.entry.told is not None:
            self.entry.told.acknowledge(place)

    def is_full(self, kept: KeptReplies) -> bool:
        """True if a generation must wait until its client has acknowledged more replies."""
        if self.entry is None or self.entry.told is None:
            return kept.of_generation >= HOLD
        return self.entry.told.waiting >= HOLD_TOLD

    def tell(
        self, session: Session, work: Generating, number: int, begin: int, end: int, data: bytes
    ) -> None:
        """Keep and commit a reply to steps of message `number`, the generation `work`.

        Timesteps of it that were told: `begin` before, `end` with this reply.
        """
        entry = self.entry
        assert isinstance(entry, Entry)
        entry.tell(ToldReply(number, begin, end, data), session.step_index, work.asked)
        entry.commit(session.reads, number - 1, session.step_index, session.last_output)

    @property
    def durability(self) -> pb.Durability:
        """What the session survives."""
        return pb.DURABILITY_NONE if self.entry is None else self.level

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
        self.check_room(_reply_bytes(signature, steps))

    def check_room(self, size: int) -> None:
        """Raise MessageTooLarge if the journal has no room for a reply of `size` bytes."""
        if size > self.most_reply_bytes:
            raise MessageTooLarge(
                f"the reply to this message would have {size} bytes, and the journal has room for "
                f"{self.most_reply_bytes} with a window of {self._window}: send fewer timesteps at once, ask for "
                "OUTPUT_MODE_LAST, or open the session with a smaller window",
                limit=self.most_reply_bytes,
                got=size,
            )

    def check_generates(self, signature: Signature, work: Generating | Search, asked: pb.Generate) -> None:
        """Raise MessageTooLarge if the journal has no room for what `asked` asks for, or for the replies to it."""
        if self.generates is None:
            return
        most_told, room = self.generates
        if isinstance(work, Search):
            size = 64 + (asked.beam.results or asked.beam.width) * (
                _HYPOTHESIS_BYTES + _CLASS_BYTES * asked.steps
            )
            most, remedy = self.most_reply_bytes, "ask for fewer results or classes"
        else:
            steps = min(asked.steps, work.per_reply)
            (given,) = signature.inputs
            outputs = {Output.ALL: steps, Output.LAST: 1, Output.NONE: 0}[work.output]
            size = 64 + _reply_bytes(signature, outputs) + (steps + 1) * max(_CLASS_BYTES, given.step_bytes)
            most = min(self.most_reply_bytes, most_told)
            remedy = "ask for fewer steps_per_reply, or for OUTPUT_MODE_NONE"
        if size > most:
            raise MessageTooLarge(
                f"a reply to this generation would have {size} bytes, and the journal has room for {most}: {remedy}, "
                "or start the server with larger --journal-reply-bytes",
                limit=most,
                got=size,
            )
        if not isinstance(work, Search) and len(work.asked) > room:
            raise MessageTooLarge(
                f"this generation's request takes {len(work.asked)} bytes, and the journal has room for {room}: name "
                "fewer stop classes",
                limit=room,
                got=len(work.asked),
            )

    def most_steps(self, signature: Signature, output: Output, steps: int) -> int:
        """How many of at most `steps` timesteps a message may have whose reply is not checked one by one."""
        if output is not Output.ALL:
            return steps
        each = _reply_bytes(signature, 1) - _reply_bytes(signature, 0)
        return min(steps, (self.most_reply_bytes - _reply_bytes(signature, 0)) // each) if each else steps


def _reply_bytes(signature: Signature, steps: int) -> int:
    """Bytes of an encoded reply of `steps` timesteps, at most."""
    return 64 + sum(8 + steps * tensor.step_bytes for tensor in signature.outputs)
