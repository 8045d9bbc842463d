"""This replica's sessions in a shared store: how they are claimed, come here, wait for the store and leave."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import structlog
from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.durability.found import Committed
from streamcell.service.errors import EngineFailed, ServiceError, SessionNotFound
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.requests import output_mode
from streamcell.service.sessions.resume_errors import SessionTakenOver
from streamcell.service.sessions.session import Aside, Output, Session
from streamcell.service.sessions.table import SessionTable, hash_token, not_found
from streamcell.service.store.errors import SessionMoved
from streamcell.service.store.interface import Claim, Claimed
from streamcell.service.store.store import Store
from streamcell.service.transport.calls import Call

from .generation_requests import remake
from .journal_place import STORE_LEVELS, level_for
from .openings import Resume, check_open
from .resumable import Resumable
from .resumable_openings import read_snapshot
from .stored_image import Arrived, arrived, encoder, invalid
from .stored_session import PATIENCE_S, StoredSession

_log = structlog.get_logger(__name__)


class Opening(Protocol):
    """A handler whose opening waits for the store."""

    @property
    def call(self) -> Call:
        """Its call."""

    def landed(self, session: Resumable, asked: Resume) -> None:
        """The session is here."""

    def refused(self, error: ServiceError) -> None:
        """It cannot be resumed here."""


class StoredSessions:
    """What the native protocol asks of the store, and the store of its sessions."""

    def __init__(self, store: Store, sessions: SessionTable, *, sealed: bool) -> None:
        """`sealed`: what the store has is encrypted, so nobody else can have written it."""
        self.store = store
        self._sessions = sessions
        self._sealed = sealed
        self._openings: Counter[bytes] = Counter()  # under way
        self._lock = threading.Lock()
        self._waiting: set[StoredSession] = set()  # whose clients may wait for the store
        self._forks: dict[StoredSession, list[Callable[[ServiceError | None], None]]] = {}
        store.on_release = self._asked_for

    def levels(self, model: Any) -> Sequence[pb.Durability]:
        """The levels at which sessions of `model` can be in the store.

        An integer of a state may be an index, and one outside its table is read as memory by some devices: so such
        states are taken only from a store whose content is encrypted.
        """
        floats = all(state.dtype.startswith("float") for state in model.file.signature.states)
        if model.journal is None or not (floats or self._sealed):
            return ()
        return STORE_LEVELS if self.store.level_sync else STORE_LEVELS[:1]

    def session(
        self,
        context: CallContext[Any],
        model: Any,
        session_id: str,
        token_hash: bytes,
        window: int,
        output: Output,
        level: pb.Durability,
        given: Sequence[bytes],
    ) -> StoredSession:
        """A session that is not listed yet; the arguments are those of `StoredSession` and `encoder`."""
        encode = encoder(model, context.tenant, token_hash, window, output, level, given)
        made = StoredSession(context, window, output, self.store, session_id, level, encode)
        made.waits_for_store = self._waiting.add
        made.place.expect(model.journal)
        return made

    # Openings

    def claim_of(
        self, asked: Resume, request: pb.OpenSession, context: CallContext[Any], found: Resumable | None
    ) -> Claim | None:
        """What an opening asks of the store; None: it creates a session that is in no store.

        `found` is the session that is live here, if there is one.

        Raises:
            DurabilityUnsupported, SnapshotInvalid, WrongDtype, …: it cannot be created.
        """
        key, token_hash = bytes.fromhex(asked.session_id), hash_token(asked.token)
        image, name = None, ""
        if found is None and not asked.must_exist:
            assert context.kept is not None
            window = min(asked.window, context.kept.max_window)
            output = output_mode(request.output_mode, Output.ALL)
            begins = Committed(0, 0)
            if request.snapshot:
                model, state = read_snapshot(request, context)
                given = state.opening(0)
                steps = int(state.step_indices[0])
                begins = Committed(0, steps, [each.tobytes() for each in state.values], state.last_output)
            else:
                model, given = check_open(request, context)
                begins = Committed(0, 0, [b""] * len(model.file.signature.states))
            level = level_for(asked.durability, model.journal, self.levels(model))
            if level not in STORE_LEVELS:
                return None
            encode = encoder(model, context.tenant, token_hash, window, output, level, given)
            image, name = (0, 0, encode(begins, b"")), model.file.name
        return Claim(key, token_hash, asked.attempt, context.tenant, name, image is not None, image)

    def open(self, claim: Claim, asked: Resume, context: CallContext[Any], opening: Opening) -> None:
        """Claim a session for an opening, bring it here, and let the opening go on with it."""
        with self._lock:
            self._openings[claim.session] += 1
        self.store.claim(claim, partial(self._answered, claim, asked, context, opening))

    def _answered(
        self,
        claim: Claim,
        asked: Resume,
        context: CallContext[Any],
        opening: Opening,
        answer: Claimed | ServiceError,
    ) -> None:
        try:
            if isinstance(answer, ServiceError):
                opening.refused(answer)
                return
            opening.landed(self._here(claim, asked, context, opening.call, answer), asked)
        except ServiceError as error:
            opening.refused(error)
        except Exception as error:  # a bug ends this opening, and the store's thread goes on
            _log.error("a session from the store was not opened", exc_info=error)
            opening.refused(EngineFailed("the session could not be brought here"))
        finally:
            with self._lock:
                self._openings[claim.session] -= 1
                if not self._openings[claim.session]:
                    del self._openings[claim.session]

    def _here(
        self, claim: Claim, asked: Resume, context: CallContext[Any], call: Call, claimed: Claimed
    ) -> StoredSession:
        """The session that was claimed, live here. Only the store's thread of claims calls it."""
        live = self._live(asked, context)
        if claimed.held:
            if live is not None and live.fence == claimed.fence:
                return live
            raise SessionMoved("the session has just ended or left: resume it", session_id=asked.session_id)
        if live is not None:
            live.lost()  # it was claimed for another replica since
        try:
            if not claimed.image:
                raise invalid(asked.session_id, "there is nothing")
            source = "" if claim.image is not None and claim.image[2] == claimed.image else "store"
            return self._bring(
                arrived(asked, claim.token_hash, claimed, context), claimed, context, call, source
            )
        except BaseException:
            self.store.free(claim.session)
            raise

    def _live(self, asked: Resume, context: CallContext[Any]) -> StoredSession | None:
        try:
            live = self._sessions.claim(asked.session_id, asked.token, context.tenant)
        except SessionNotFound:
            return None
        listener = live.session.listener
        return listener if isinstance(listener, StoredSession) else None

    def _bring(
        self, read: Arrived, claimed: Claimed, context: CallContext[Any], call: Call, source: str
    ) -> StoredSession:
        """Open a session here as the store has it. The engine thread settles it, if it has a state."""
        model, image, found = read.model, read.image, read.found
        session_id, token_hash = found.known
        made = self.session(
            context, model, session_id, token_hash, found.window, read.output, read.level, image.opening(0)
        )
        made.claimed(claimed.fence, (claimed.number, claimed.steps, claimed.image))
        work = None
        if read.request:
            try:
                work = remake(read.request, model, context.limits, made, found.told)
            except DecodeError:
                raise invalid(session_id, "a generation's request is none") from None
            if not found.told < work.wanted:
                raise invalid(session_id, "a generation's timesteps")
        made.unsettled = found.steps > 0

        def begin(session: Session) -> None:
            made.detached(source, found.number)
            if work is not None:
                if context.grant is not None:
                    context.grant.take_generation(again=True)
                    work.owner = context.grant
                made.expects(work, found.told)
            if not found.steps:
                made.place.enter(session, model.journal, found)

        def settle(session: Session) -> None:
            if image.values:
                model.engine.pool.write(session.slot, image.states(0))
            made.place.enter(session, model.journal, found)
            session.advance(found.steps, whole=True)
            session.last_output = image.last_output
            if work is not None:
                made.goes_on_with(work)

        made.enter(model, call.peer, found.known, image.opening(0), begin, call.caller.subject)
        made.enter_store()
        if found.steps:
            session = made.live.session
            aside = Aside(session, partial(made.settle, settle), made.settled, begun=True)
            model.batcher.submit(session, aside)
        else:
            made.settled()
        return made

    # Forks

    def fork(self, made: StoredSession, done: Callable[[ServiceError | None], None]) -> None:
        """Put a fork into the store, and call `done`: with an error if it is not there, and has ended."""
        image = made.image()
        if image is None:  # it has ended already
            done(not_found(made.key.hex()))
            return
        with self._lock:
            waiting = self._forks.get(made)
            if waiting is not None:
                waiting.append(done)
                return
            self._forks[made] = [done]
        session = made.live.session
        claim = Claim(
            made.key,
            session.token_hash,
            0,
            session.tenant,
            made.live.model.file.name,
            may_create=True,
            image=image,
        )
        self.store.claim(claim, partial(self._forked, made))

    def _forked(self, made: StoredSession, answer: Claimed | ServiceError) -> None:
        error = answer if isinstance(answer, ServiceError) else None
        if isinstance(answer, Claimed):
            made.claimed_as_it_is(answer.fence)
            made.enter_store()
        else:
            made.withdraw()
        if isinstance(error, SessionTakenOver):  # it was made before, and its reply was lost with its replica
            error = None
        with self._lock:
            waiting = self._forks.pop(made)
        for done in waiting:
            done(error)

    # Leaving, and waiting

    def _asked_for(self, key: bytes) -> None:
        """Another replica asks for a session; not while an opening of it is under way here."""
        with self._lock:
            if self._openings[key]:
                return
            del self._openings[key]
        try:
            listener = self._sessions.find(key.hex()).session.listener
        except SessionNotFound:
            return
        if isinstance(listener, StoredSession):
            listener.move_away(lambda: None, at_once=True)

    def look(self) -> None:
        """End the streams whose clients have waited too long for the store. Call it now and then."""
        before_s = time.monotonic() - PATIENCE_S
        for session in list(self._waiting):
            self._waiting.discard(session)  # first, for it may begin to wait at any time
            session.tell_stored()  # the lease may be young again
            since_s = session.waits_since()
            if since_s is not None and since_s < before_s:
                session.give_up_waiting()
            elif since_s is not None:
                self._waiting.add(session)
