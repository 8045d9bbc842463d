"""What a sequence keeps so that clients can repeat requests: `streamcell_number` and `streamcell_token`."""

from __future__ import annotations

import secrets

from streamcell.card import Signature
from streamcell.proto.inference import oip
from streamcell.service.access.identity import ANYONE, Identity
from streamcell.service.durability.found import Found
from streamcell.service.durability.journal import Entry, Journal
from streamcell.service.durability.layout import SEQUENCE
from streamcell.service.errors import MessageTooLarge, SequenceGap, ServiceError, WrongShape
from streamcell.service.sessions.kept_replies import KeptReplies, KeptRoom
from streamcell.service.sessions.resume_errors import DurabilityUnsupported, RepliesGone
from streamcell.service.sessions.session import Session

from .entry import PendingRequest
from .requests import Key, ParsedRequest

_TENANT, _OPERATOR = "tenant", "operator"  # of a record, beside what clients may send
WINDOW = 16  # requests whose replies a sequence keeps; fewer if the server's sessions may have fewer


class Numbers:
    """The replies that one sequence keeps, and its place in its model's journal. Its sequence's lock guards it.

    Attributes:
        entry: in the journal, if the sequence outlives the process.
    """

    __slots__ = ("_kept", "_most", "_room", "_waiting", "entry")

    def __init__(self, room: KeptRoom | None, journal: Journal | None) -> None:
        """`room`: for replies in memory, None if this server keeps none; `journal`: the model's, for them instead."""
        self.entry: Entry | None = None
        # Bytes of the largest reply in the journal.
        self._most = None if journal is None else journal.most_reply_bytes(window(journal.counts.window))
        self._room = room
        self._kept: KeptReplies | None = None  # once a request has a number, if there is no journal
        self._waiting: dict[int, list[PendingRequest]] = {}

    def check(self, asked: ParsedRequest) -> None:
        """Check that the reply to a request with a number can be kept.

        Raises:
            DurabilityUnsupported: this server keeps no replies.
            MessageTooLarge: the reply is too large for the journal.
        """
        if self._most is not None:
            size = sum(_sizes(asked))
            if size > self._most:
                raise MessageTooLarge(
                    f"the reply to this request has {size} bytes, and the journal has room for {self._most}: send "
                    "fewer timesteps at once, or start the server with larger --journal-reply-bytes",
                    limit=self._most,
                    got=size,
                )
        elif self._kept is None:
            if self._room is None:
                raise DurabilityUnsupported("this server keeps no replies: leave streamcell_number out")
            self._kept = KeptReplies(window(self._room.max_window), self._room)

    def wait(self, number: int, entry: PendingRequest) -> None:
        """Answer `entry`, a repeated request, together with the request of that number, which waits or runs."""
        self._waiting.setdefault(number, []).append(entry)

    def applied(
        self, entry: PendingRequest, number: int, session: Session, tensors: list[bytes]
    ) -> list[PendingRequest]:
        """Keep the reply to request `number`, if it has a number, and commit its steps. Returns repeats that wait."""
        if entry.plan.flags.number:
            data = b"".join(tensors)
            if self.entry is not None:
                self.entry.keep(number, 0, data)
            elif self._kept is not None:
                self._kept.add((number, 0), data)
        if self.entry is not None:
            self.entry.commit(session.reads, number, session.step_index, session.last_output)
        return self._waiting.pop(number, [])

    def reply(self, number: int, applied: int) -> bytes:
        """The outputs, one after another, that request `number` was answered with.

        Raises:
            RepliesGone: they are no longer kept, or never were: the request did not say its number.
        """
        found = None
        if self.entry is not None:
            found = self.entry.reply(number)
        elif self._kept is not None:
            found = self._kept.at((number, 0))
        if found is None:
            raise RepliesGone(
                f"request {number} is applied, and its reply is no longer kept: {applied} requests are applied, and a "
                f"sequence keeps the replies to the last {WINDOW} that said their numbers",
                number=number,
                applied=applied,
            )
        return found

    def clear(self) -> list[PendingRequest]:
        """Drop all: the sequence is over. Returns the repeats that still wait."""
        if self.entry is not None:
            self.entry.close()
        if self._kept is not None:
            self._kept.clear()
        waiting, self._waiting = self._waiting, {}
        return [entry for entries in waiting.values() for entry in entries]


def window(most: int) -> int:
    """Replies that a sequence keeps on a server whose sessions may have a window of `most`."""
    return min(WINDOW, most)


def record(
    key: Key,
    token_hash: bytes,
    session: Session,
    opening: tuple[bytes, ...],
    signature: Signature,
    most_window: int,
) -> Found:
    """What the journal keeps of a new sequence: the request that started it, without its step, and whose it is."""
    model, sequence = key
    started = oip.ModelInferRequest(model_name=model)
    parameter = started.parameters["sequence_id"]
    if isinstance(sequence, str):
        parameter.string_param = sequence
    else:
        parameter.int64_param = sequence
    if (owner := session.owner) is not None:
        started.parameters[_TENANT].string_param = owner.tenant
        started.parameters[_OPERATOR].bool_param = owner.operator
    for tensor, value in zip(signature.open_inputs, opening, strict=True):
        started.inputs.add(name=tensor.name)
        started.raw_input_contents.append(value)
    return Found(
        slot=session.slot,
        row=0,
        session=bytes.fromhex(session.session_id),
        token_hash=token_hash.ljust(32, b"\0"),
        attempt=0,
        window=window(most_window),
        opening=started.SerializeToString(),
        number=0,
        steps=0,
        kind=SEQUENCE,
    )


def recorded(found: Found) -> tuple[Key, tuple[bytes, ...]]:
    """The key of a sequence that an earlier process has left, and what it was given.

    Raises:
        DecodeError: its record is none.
    """
    started = oip.ModelInferRequest.FromString(found.opening)
    parameter = started.parameters["sequence_id"]
    sequence = parameter.string_param or parameter.int64_param
    return (started.model_name, sequence), tuple(started.raw_input_contents)


def owner_of(found: Found) -> Identity:
    """Whose a sequence is that an earlier process has left; `ANYONE` if it is no tenant's.

    Raises:
        DecodeError: its record is none.
    """
    said = oip.ModelInferRequest.FromString(found.opening).parameters
    if _TENANT not in said:
        return ANYONE
    return Identity(said[_TENANT].string_param, "", said[_OPERATOR].bool_param)


def new_id() -> str:
    """A session's id in a journal, in hexadecimal."""
    return secrets.token_hex(16)


def gap(number: int, accepted: int) -> SequenceGap:
    """The error for a request whose number is not the next one."""
    return SequenceGap(
        f"this request is number {number}, and the sequence has taken {accepted}: send number {accepted + 1} first",
        number=number,
        taken=accepted,
    )


def answer_again(entry: PendingRequest, key: Key, data: bytes) -> ServiceError | None:
    """Answer a repeated request with the outputs of the first one; returns the error that it gets instead."""
    tensors, at = [], 0
    for size in _sizes(entry.plan):
        tensors.append(data[at : at + size])
        at += size
    if at != len(data):
        error = WrongShape(
            f"request {entry.plan.flags.number} was applied with another shape or other outputs: send it as it was",
            number=entry.plan.flags.number,
        )
        entry.fail(error, key)
        return error
    entry.answer(tensors)
    return None


def _sizes(asked: ParsedRequest) -> list[int]:
    """Bytes of each output that a request is answered with, and of each state if it asks for one."""
    signature, form = asked.file.signature, asked.form
    sizes = [form.rows * form.steps * tensor.step_bytes for tensor in signature.outputs]
    return sizes + [state.session_bytes for state in signature.states] if asked.answer.states else sizes
