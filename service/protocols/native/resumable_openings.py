"""Makes resumable sessions: for an opening, from a snapshot, from another session, or from an earlier process."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from streamcell.proto import pb
from streamcell.service.durability.found import Found
from streamcell.service.durability.journal import Journal
from streamcell.service.durability.layout import SESSION, STORED
from streamcell.service.errors import MalformedMessage, SessionNotFound
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import check_dtypes, output_mode
from streamcell.service.sessions.image import Image
from streamcell.service.sessions.session import Aside, Output, Session
from streamcell.service.sessions.table import hash_token, not_found

from .generation_requests import remake
from .journal_place import STORE_LEVELS, level_for, record
from .openings import Resume
from .resumable import Resumable
from .snapshots import Snapshots


def created(
    asked: Resume,
    model: Any,
    opening: tuple[bytes, ...],
    context: CallContext[Any],
    request: pb.OpenSession,
    peer: str,
    by: str,
) -> Resumable:
    """Open the session that `asked` names, detached; `by` is as for `SessionTable.open`.

    Raises:
        DurabilityUnsupported: it would not outlive what its client asks for.
        SessionNotFound: there is one of that id, with another token.
        SessionLimit, ServerDraining, …: as `SessionTable.open`.
    """
    assert context.kept is not None
    journal = _journal_for(asked.durability, model)
    window = min(asked.window, context.kept.max_window)
    made = Resumable(context, window, output_mode(request.output_mode, Output.ALL))

    def begin(session: Session) -> None:
        made.detached("")
        place(made, window, journal, 0)

    made.enter(model, peer, (asked.session_id, hash_token(asked.token)), opening, begin, by)
    return made


def restored(
    asked: Resume, context: CallContext[Any], request: pb.OpenSession, peer: str, by: str
) -> Resumable:
    """Open the session that `asked` names from the snapshot in `request`. The engine thread settles it.

    `by` is as for `SessionTable.open`.

    Raises:
        SnapshotInvalid, SnapshotMismatch: the snapshot cannot be used.
        MalformedMessage, DurabilityUnsupported, SessionNotFound, SessionLimit, …: as `check_open` and `created`.
    """
    assert context.kept is not None
    model, image = read_snapshot(request, context)
    journal = _journal_for(asked.durability, model)
    window = min(asked.window, context.kept.max_window)
    made = Resumable(context, window, output_mode(request.output_mode, Output.ALL))
    made.unsettled = True
    if journal is not None:  # messages may come before the engine thread has entered it
        made.place.expect(journal)
    known = (asked.session_id, hash_token(asked.token))
    made.enter(model, peer, known, image.opening(0), lambda session: made.detached(""), by)
    session, steps = made.live.session, int(image.step_indices[0])

    def begin(session: Session) -> None:
        if steps and image.values:
            model.engine.pool.write(session.slot, image.states(0))
        session.last_output = image.last_output
        place(made, window, journal, steps)

    def told() -> None:
        model.metrics.state_copied("restore")
        context.sessions.tell_copied(made.live, "restore")
        made.settled()

    model.batcher.submit(session, Aside(session, partial(made.settle, begin), told, begun=True))
    return made


def read_snapshot(request: pb.OpenSession, context: CallContext[Any]) -> tuple[Any, Image]:
    """The model that an opening with a snapshot names, and the snapshot's session.

    Raises:
        SnapshotInvalid, SnapshotMismatch, MalformedMessage, ModelNotFound, …: as `restored`.
    """
    snapshots: Snapshots = context.snapshots
    if request.inputs:
        raise MalformedMessage("a snapshot has the values of the opening: leave `inputs` unset")
    content = snapshots.unseal(request.snapshot)
    model = context.models.find(
        request.model or content.model, request.version or ("" if request.model else content.version)
    )
    check_dtypes(model.file.signature, request.dtypes)
    return model, snapshots.image(content, model)


def _journal_for(asked: int, model: Any) -> Journal | None:
    """The journal of a new session that is in no store."""
    level = level_for(asked, model.journal)
    return None if level == pb.DURABILITY_NONE else model.journal


def forked(asked: pb.Fork, source: Resumable, context: CallContext[Any], by: str) -> tuple[Resumable, bool]:
    """Open the session that `asked` names in the state of `source`, detached. For the engine thread.

    The state is copied on the device. If there is a session of that id and token, it is that one, and nothing is done.
    `by` is as for `SessionTable.open`.

    Returns:
        The session, and True if it is new. One that is in a store is not claimed yet.

    Raises:
        DurabilityUnsupported, SessionNotFound, SessionLimit, ServerDraining, …: as `created`.
    """
    assert context.kept is not None
    id_ = asked.session.hex()
    with suppress(SessionNotFound):
        there = context.sessions.claim(id_, asked.token, context.tenant).session.listener
        if not isinstance(there, Resumable):  # it has just ended
            raise not_found(id_)
        return there, False
    model, parent = source.live.model, source.live.session
    in_store = () if context.stored is None else context.stored.levels(model)
    level = level_for(asked.durability, model.journal, in_store)
    journal = None if level == pb.DURABILITY_NONE else model.journal
    window = min(asked.window, context.kept.max_window)
    token_hash = hash_token(asked.token)
    made: Resumable = Resumable(context, window, source.output)
    if level in STORE_LEVELS:
        made = context.stored.session(
            context, model, id_, token_hash, window, source.output, level, parent.opening
        )

    def begin(session: Session) -> None:
        if not parent.fresh and model.file.signature.states:
            model.engine.pool.copy(parent.reads, session.slot)
        session.last_output = parent.last_output
        made.detached("")
        place(made, window, journal, parent.step_index)

    made.enter(model, parent.peer, (id_, token_hash), parent.opening, begin, by)
    return made, True


def place(made: Resumable, window: int, journal: Journal | None, steps: int) -> None:
    """Let a session begin with the state that its slot has after so many timesteps, and enter it in its journal."""
    live = made.live
    session = live.session
    if journal is not None:
        signature = live.model.file.signature
        kind = STORED if made.in_store else SESSION
        about = record(session.session_id, window, made.output, signature, session, steps, kind)
        made.place.enter(session, journal, about)
    if steps:
        session.advance(steps, whole=True)


def recovered(
    found: Found,
    request: pb.OpenSession,
    model: Any,
    opening: tuple[bytes, ...],
    context: CallContext[Any],
) -> Resumable:
    """Bring back a session that an earlier process has left; `request` and `opening` are its opening's.

    Raises:
        SessionLimit, ServerDraining, …: as `SessionTable.open`.
        BadGeneration, …: its generation asks for more than this server allows.
    """
    made = Resumable(context, found.window, output_mode(request.output_mode, Output.ALL))
    work = None
    if found.told:
        work = remake(found.generations.request, model, context.limits, made, found.told)

    def begin(session: Session) -> None:
        made.place.enter(session, model.journal, found)
        if found.steps:
            session.advance(found.steps, whole=True)
            session.last_output = found.last
        made.detached("restart", found.number, found.attempt)
        if work is not None:
            if context.grant is not None:
                context.grant.take_generation(again=True)
                work.owner = context.grant
            made.wait_with(work, found.told)

    made.enter(model, "", (found.session.hex(), found.token_hash), opening, begin)
    return made
