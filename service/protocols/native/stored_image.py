"""What the shared store has of a session: a `StoredSession`, written at each put, and read where its client comes to.

Whoever can write to the store can write anything there: a reader checks all of it before it uses any.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.durability.found import Committed, Found, Ring, unpacked
from streamcell.service.durability.journal import Journal
from streamcell.service.durability.layout import PLACES, STORED
from streamcell.service.durability.told import Generations, ToldReply
from streamcell.service.errors import InvalidArgument, ServiceError
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.protobuf import varint
from streamcell.service.protocols.common.requests import OUTPUT_MODES, output_mode
from streamcell.service.sessions.image import Image
from streamcell.service.sessions.session import Output
from streamcell.service.sessions.snapshot_errors import SnapshotInvalid
from streamcell.service.store.errors import StoredStateInvalid
from streamcell.service.store.interface import Claimed

from .journal_place import STORE_LEVELS
from .openings import Resume
from .snapshots import model_of

_MOST = 1 << 42  # messages or timesteps
_STEP_INDEX = struct.Struct("<q")

# Fields of streamcell.v1: (number << 3) | type.
_STATE_TAG = b"\x0a"  # StoredSession.state: 1, length-delimited
_APPLIED_TAG = b"\x30"  # StoredSession.applied: 6, varint
_REPLY_PLACES_TAG = b"\x3a"  # StoredSession.reply_places: 7, length-delimited
_GENERATION_TAG = b"\x42"  # StoredSession.generation: 8, length-delimited
_REPLY_BYTES_TAG = b"\x52"  # StoredSession.reply_bytes: 10, length-delimited
_VALUES_TAG = b"\x2a"  # SnapshotContent.values: 5, length-delimited
_STEP_INDICES_TAG = b"\x32\x08"  # SnapshotContent.step_indices: 6, length-delimited, and its 8 bytes
_LAST_OUTPUT_TAG = b"\x42"  # SnapshotContent.last_output: 8, length-delimited

Encode = Callable[[Committed, bytes], bytes]


def encoder(
    model: Any,
    tenant: str,
    token_hash: bytes,
    window: int,
    output: Output,
    level: pb.Durability,
    given: Sequence[bytes],
) -> Encode:
    """What makes the images of a session, of what was committed and the rest of a generation's request.

    Args:
        model: its model.
        tenant: whose it is.
        token_hash: of its token.
        window: the most messages without a reply.
        output: the output steps of a message that does not name any.
        level: what it outlives.
        given: the values of its opening.
    """
    state = model_of(model)
    state.tenant = tenant
    state.given.extend(given)
    fixed = pb.StoredSession(
        state=state,
        token_hash=token_hash,
        window=window,
        output_mode=OUTPUT_MODES[output],
        durability=level,
    ).SerializeToString()
    return partial(_encode, fixed, window)


def _encode(fixed: bytes, window: int, committed: Committed, rest: bytes) -> bytes:
    """Concatenated messages merge: protobuf's own rule.

    Written by hand, for each session that steps is encoded twenty times a second.
    """
    number, told, (places, replies) = committed.number, committed.generations, committed.replies
    state: list[bytes] = []
    for value in committed.states:
        state += (_VALUES_TAG, varint(len(value)), value)
    state += (_STEP_INDICES_TAG, _STEP_INDEX.pack(committed.steps))
    if committed.last:
        state += (_LAST_OUTPUT_TAG, varint(len(committed.last)), committed.last)
    parts = [fixed, _STATE_TAG, varint(sum(map(len, state))), *state]
    if number:
        parts += (_APPLIED_TAG, varint(number))
    if places:
        parts += (_REPLY_PLACES_TAG, varint(len(places)), places)
    if replies:
        parts += (_REPLY_BYTES_TAG, varint(len(replies)), replies)
    if told.replies or told.number == number + 1:
        generation = _generation(told, number, window, rest).SerializeToString()
        parts += (_GENERATION_TAG, varint(len(generation)), generation)
    return b"".join(parts)


def _generation(told: Generations, number: int, window: int, rest: bytes) -> pb.StoredGeneration:
    goes_on = told.number == number + 1
    return pb.StoredGeneration(
        number=told.number if goes_on else 0,
        base=told.base if goes_on else 0,
        request=told.request + rest if goes_on else b"",
        replies=[
            pb.StoredReply(number=each.number, begin=each.begin, end=each.end, data=each.data)
            for each in told.replies
            if each.number > number - window
        ],
    )


@dataclass(frozen=True)
class Arrived:
    """A session from the store.

    Attributes:
        model: its model.
        image: its state.
        found: the rest, as an earlier process would have left it; its slot is not known yet.
        output: the output steps of a message that does not name any.
        level: what it outlives.
        request: a generation's that goes on, as its client or `again` made it; empty: none does.
    """

    model: Any
    image: Image
    found: Found
    output: Output
    level: pb.Durability
    request: bytes


def arrived(asked: Resume, token_hash: bytes, claimed: Claimed, context: CallContext[Any]) -> Arrived:
    """Read what was claimed.

    Raises:
        StoredStateInvalid: it is none, contradicts itself, or does not fit this server.
        SnapshotMismatch: the model's files are others here.
        ModelNotFound, …: as `ModelFinder.find`.
    """
    try:
        stored = pb.StoredSession.FromString(claimed.image)
    except DecodeError:
        raise invalid(asked.session_id, "it is no session") from None
    content, number = stored.state, stored.applied
    _expect(stored.token_hash == token_hash and content.tenant == context.tenant, asked, "its owner")
    _expect(number == claimed.number and number < _MOST, asked, "messages")
    _expect(stored.durability in STORE_LEVELS, asked, "its level")
    _expect(stored.output_mode in OUTPUT_MODES.values(), asked, "its output mode")
    model = context.models.find(content.model, content.version)
    journal: Journal | None = model.journal
    levels = context.stored.levels(model)
    if journal is None or not levels:
        raise invalid(asked.session_id, "this server does not keep sessions of its model in the store")
    _expect(
        1 <= stored.window <= journal.counts.window, asked, "its window, or --queue-messages is less here"
    )
    try:
        image = context.snapshots.image(content, model, trusted=True)
    except (SnapshotInvalid, InvalidArgument) as error:
        raise invalid(asked.session_id, str(error)) from error
    steps = int(image.step_indices[0])
    generations = _generations(stored.generation, number, steps, stored.window, journal, asked)
    _expect(claimed.steps == (steps - generations.base if generations.number else 0), asked, "timesteps")
    request = stored.generation.request if generations.number else b""
    opening = pb.OpenSession(model=content.tenant, output_mode=stored.output_mode)
    for tensor, value in zip(model.file.signature.open_inputs, image.opening(0), strict=True):
        opening.inputs.add(name=tensor.name, value=value)
    found = Found(
        slot=0,
        row=0,
        session=bytes.fromhex(asked.session_id),
        token_hash=token_hash,
        attempt=0,
        window=stored.window,
        opening=opening.SerializeToString(),
        number=number,
        steps=steps,
        ring=_ring(stored, journal, asked),
        last=image.last_output if steps else b"",
        generations=generations,
        kind=STORED,
    )
    _expect(journal.fits(found), asked, "its sizes, or those of this server's journal are smaller")
    return Arrived(
        model, image, found, output_mode(stored.output_mode, Output.ALL), stored.durability, request
    )


def _ring(stored: pb.StoredSession, journal: Journal, asked: Resume) -> Ring | None:
    most = journal.most_reply_bytes(stored.window)
    ring = unpacked(stored.reply_places, stored.reply_bytes, stored.window, most, stored.applied)
    fine = ring is not None and bool((ring.fields[:, 1] < _MOST).all())
    _expect(fine, asked, "a reply, or --journal-reply-bytes is less here")
    return ring


def _generations(
    stored: pb.StoredGeneration, number: int, steps: int, window: int, journal: Journal, asked: Resume
) -> Generations:
    """The generations of a session that has applied so many messages and timesteps."""
    if not (stored.number or stored.replies):
        return Generations()
    counts = journal.counts
    _expect(bool(counts.last_bytes), asked, "a generation")
    _expect(stored.number in (0, number + 1), asked, "a generation's number")
    _expect(not stored.number or stored.base < steps, asked, "a generation's timesteps")
    _expect(len(stored.replies) <= PLACES, asked, "replies to a generation")
    replies = []
    for each in stored.replies:
        fine = max(0, number - window) < each.number <= number + bool(stored.number)
        fine = fine and each.begin < each.end < _MOST and len(each.data) * PLACES <= counts.reply_bytes
        _expect(fine, asked, "a reply to a generation, or --journal-reply-bytes is less here")
        replies.append(ToldReply(each.number, each.begin, each.end, each.data))
    if not stored.number:
        return Generations(replies=tuple(replies))
    request = _without_outcome(stored.request, asked)
    return Generations(stored.number, stored.base, request, tuple(replies))


def _without_outcome(data: bytes, asked: Resume) -> bytes:
    """A generation's request as the journal keeps it."""
    try:
        request = pb.StreamRequest.FromString(data)
    except DecodeError:
        raise invalid(asked.session_id, "a generation's request is none") from None
    request.ClearField("outcome")
    return request.SerializeToString()


def invalid(session_id: str, why: str) -> ServiceError:
    """The error of a session that cannot come here, for that reason."""
    return StoredStateInvalid(
        f"what the store has of this session cannot be used here: {why}; resume it on another replica, or open a "
        "new one",
        session_id=session_id,
    )


def _expect(fine: bool, asked: Resume, what: str) -> None:
    if not fine:
        raise invalid(asked.session_id, f"it contradicts itself or this server ({what})")
