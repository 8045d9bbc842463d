"""One sequence of the Open Inference Protocol: a session that requests reach by a client's id."""

from __future__ import annotations

import hmac
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from streamcell.service.access.grant import Grant
from streamcell.service.batching.inline import AfterArrivals
from streamcell.service.durability.found import Found
from streamcell.service.durability.journal import Journal
from streamcell.service.errors import InvalidArgument, SequenceGap, ServerDraining, ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.sessions.kept_replies import KeptRoom
from streamcell.service.sessions.session import Work
from streamcell.service.sessions.table import Live, SessionTable, hash_token

from .entry import PendingRequest
from .numbers import Numbers, answer_again, gap, new_id, record
from .requests import Key


class Sequence:
    """The owner of one session, from a START to its first end.

    Requests may come from several streams and calls at once; they are applied in the order in which `add` saw them.
    They are held back while an earlier sequence under the same id is not done, and behind one that asks for states:
    after a run the pool holds only the state after its last step.

    Attributes:
        applied: requests that are answered.
        token_hash: of the secret that its requests must bring; empty if they need none.
    """

    __slots__ = (
        "_after", "_by", "_ended", "_finished", "_held", "_journal", "_keeps", "_last", "_live", "_lock", "_numbers",
        "_opening", "_owner", "_paused", "_pending", "_queue", "_sessions", "applied", "closing", "key", "model",
        "peer", "reason", "token_hash",
    )  # fmt: skip

    def __init__(
        self,
        key: Key,
        model: LoadedModel,
        sessions: SessionTable,
        ended: Callable[[Sequence, ServiceError | None], None],
        peer: str,
        queue: int,
        opening: tuple[bytes, ...] = (),
        token: str = "",
        room: KeptRoom | None = None,
        owner: Grant | None = None,
        *,
        lasts: bool = True,
        by: str = "",
    ) -> None:
        """A sequence that has not begun: `begin` submits the requests that `add` holds.

        Args:
            ended: called under the lock when it is over, with the error that ended it; None if a request ended it.
            opening: what its session is given, a value an open input.
            owner: the tenant, if there are any.
            queue: requests that may wait before their streams are no longer read.
            token: the secret that its requests must bring; empty if they need none.
            room: for the replies to requests that say their numbers; None if this server keeps none.
            lasts: whether it goes into its model's journal, if there is one.
            by: as for `SessionTable.open`.
        """
        self.key = key
        self.model: LoadedModel | None = model
        self.peer = peer
        self.reason = "closed"
        # A request has ended it: it takes no more requests, and answers those it has.
        self.closing = False
        self._sessions = sessions
        self._ended = ended
        self._queue = queue
        self._opening = opening
        self._owner = owner
        self._lock = threading.Lock()
        self._live: Live[LoadedModel] | None = None
        self._pending: deque[PendingRequest] = deque()  # submitted, in order
        self._held: deque[tuple[PendingRequest, Work]] | None = deque()
        self._paused: list[PendingRequest] = []  # of streams that are not read
        self._last: PendingRequest | None = None  # taken last
        self._after: Sequence | None = None  # begins when this one is over
        self.applied = 0
        self.token_hash = hash_token(token.encode()) if token else b""
        self._journal = model.lasting_journal if lasts else None
        self._by = by
        self._numbers = Numbers(room, self._journal)
        self._keeps = False  # replies are kept, or steps committed, before they are told
        self._finished = False  # its END is answered; its replies are kept for a while

    # The calls' side

    def begin(self) -> None:
        """Open the session and submit what is held.

        Raises:
            SessionLimit, ServerDraining: it could not be opened; the held requests have failed.
        """
        model = self.model
        assert model is not None
        try:
            id_ = "" if self._journal is None else new_id()
            live = self._sessions.open(model, self, self.peer, id_, self.token_hash, self._owner, self._by)
            live.session.opening = self._opening
            if self._journal is not None:
                self._enter(live, self._journal)
        except ServiceError as error:
            self._over(error)
            raise
        with self._lock:
            over = self.model is None
            if not over:
                self._live = live
                if not self._held and not self.closing:
                    self._held = None
                    return
        if over:  # ended in between, for example by a shutdown
            self._sessions.end(live, "cancelled")
            return
        self._release()
        if self.closing:
            self._over_if_done()

    def add(
        self, entry: PendingRequest, work: Work, after_arrivals: AfterArrivals | None = None
    ) -> bool | None:
        """Take one request; True if there is room for more, None if the sequence takes no more.

        If there is no room, `entry.resume` is called once there is. `after_arrivals` is as in `Batcher.submit`.
        """
        flags = entry.plan.flags
        with self._lock:
            if self.closing:
                return None
            self.closing = flags.end
            self._last = entry
            if self._held is None and not entry.plan.answer.states:
                # `_submit` written out, which saves a call for each request.
                live = self._live
                assert live is not None
                self._pending.append(entry)
                room = live.model.batcher.submit(live.session, work, after_arrivals)
            else:
                room = self._queued(entry, work, after_arrivals)
            if not room:
                self._paused.append(entry)
            return room

    def add_numbered(
        self, entry: PendingRequest, work: Work, after_arrivals: AfterArrivals | None = None
    ) -> bool | None:
        """As `add`, for a request with a number. A repeated one gets the reply to the first.

        Raises:
            SequenceGap: an earlier request is missing; this one changes nothing.
            RepliesGone: it is applied, and its reply is no longer kept.
            DurabilityUnsupported, MessageTooLarge: its reply cannot be kept.
        """
        number = entry.plan.flags.number
        with self._lock:
            accepted = self._accepted
            if self.model is None or (self.closing and number > accepted):
                return None
            if number > accepted + 1:
                raise gap(number, accepted)
            if number > self.applied and number <= accepted:
                self._numbers.wait(number, entry)
                return True
            if number <= self.applied:
                kept = self._numbers.reply(number, self.applied)
            else:
                self._numbers.check(entry.plan)
                self._keeps = True
                self.closing = entry.plan.flags.end
                self._last = entry
                room = self._queued(entry, work, after_arrivals)
                if not room:
                    self._paused.append(entry)
                return room
        answer_again(entry, self.key, kept)
        return True

    def has(self, number: int) -> bool:
        """True if it has taken the request of that number, which is 0 for none."""
        with self._lock:
            return 0 < number <= self._accepted

    def opens_to(self, token: str) -> bool:
        """True if requests with that token, empty for none, are its own."""
        return hmac.compare_digest(self.token_hash, hash_token(token.encode()) if token else b"")

    @property
    def _accepted(self) -> int:
        return self.applied + len(self._pending) + len(self._held or ())

    def close(self, reason: str, after: Sequence | None = None) -> bool:
        """Take no more requests and end when those taken are answered; False if it is over already.

        Args:
            reason: a metrics label.
            after: the sequence that begins then. If this one is over already, the caller must call its `begin`.
        """
        with self._lock:
            if self.model is None:
                return False
            if not self.closing:
                self.closing, self.reason = True, reason
            if self._pending or self._held or self._live is None:
                self._after = after or self._after
                return True
        self._over(None)
        return False

    def abandoned(self, before_s: float) -> bool:
        """True if it was last used before that time, has no work, and the stream of its last request is gone."""
        live, last = self._live, self._last
        if live is None or self._pending or self._held or (last is not None and not last.gone):
            return False
        return live.session.detached_s is None and live.session.last_used_s < before_s

    def leave(self, error: ServiceError) -> None:
        """End it with `error`, because the server stops; if it is in a journal, nobody waits for it from now on."""
        live = self._live
        if self._numbers.entry is None or live is None:
            self.fail(error)
        else:
            live.session.detached_s = time.monotonic()

    # The session's side, on the engine thread

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Answer the oldest request; after the last one of a sequence that was ended, it is over."""
        keeps = self._keeps
        if keeps:
            outputs = self._with_states(outputs)
        with self._lock:
            if not self._pending:  # it has just been ended by another thread
                return
            entry, live = self._pending.popleft(), self._live
            done = self.closing and not self._pending and not self._held
            self.applied += 1
            again: list[PendingRequest] = []
            if keeps and live is not None:
                again = self._numbers.applied(entry, self.applied, live.session, outputs)
                done = done and not self._finish(entry, live)
        if entry.plan.answer.states:
            assert live is not None
            if not keeps:
                # If it ends right now, its row is unchanged: only the thread that runs batches writes rows.
                outputs = [*outputs, *live.model.read_states(live.session)]
            self._release()
            if self.closing:
                self._over_if_done()
        elif done:
            self._over(None)
        entry.answer(outputs)
        for each in again:
            answer_again(each, self.key, b"".join(outputs))

    def resume(self) -> None:
        """The queue has room again."""
        with self._lock:
            paused, self._paused = self._paused, []
        for entry in paused:
            entry.resume()

    def fail(self, error: ServiceError) -> None:
        """End the session: the oldest request fails with `error`, and so do those behind it."""
        if isinstance(error, ServerDraining) and self._numbers.entry is not None:
            error = ServerDraining(
                "the server is shutting down and keeps the sequence: go on with it when the server is back"
            )
        self._over(None if self._finished else error)

    # Inside

    def _with_states(self, outputs: list[bytes]) -> list[bytes]:
        """The outputs, with the states if the oldest request asks for them."""
        with self._lock:
            live = self._live
            asked = live is not None and bool(self._pending) and self._pending[0].plan.answer.states
        return [*outputs, *live.model.read_states(live.session)] if asked and live is not None else outputs

    def _enter(self, live: Live[LoadedModel], journal: Journal) -> None:
        """Give the sequence its place in the journal."""
        session, window = live.session, journal.counts.window
        found = record(self.key, self.token_hash, session, self._opening, live.model.file.signature, window)
        self._numbers.entry = session.journal_entry = journal.open(session.slot, found)
        self._keeps = True

    def recover(self, found: Found) -> int:
        """Continue the sequence of an earlier process; returns its slot.

        Raises:
            SessionLimit, ServerDraining, …: as `SessionTable.open`.
        """
        model, journal = self.model, self._journal
        assert model is not None
        assert journal is not None
        self.token_hash = found.token_hash if any(found.token_hash) else b""
        with self._lock:
            live = self._sessions.open(model, self, "", found.session.hex(), self.token_hash, self._owner)
            session = live.session
            session.opening = self._opening
            self._numbers.entry = session.journal_entry = journal.open(session.slot, found)
            if found.steps:
                session.advance(found.steps, whole=True)
                session.last_output = found.last
            self._live, self._held, self._keeps = live, None, True
            self.applied = found.number
            if found.attempt:
                self._finished = self.closing = True
                session.detached_s = time.monotonic()
        return session.slot

    def _finish(self, entry: PendingRequest, live: Live[LoadedModel]) -> bool:
        """Keep a sequence whose END is answered, because its client may repeat that; False if nothing is to be kept."""
        if not entry.plan.flags.number or not self._sessions.linger_s or self._after is not None:
            return False
        self._finished = True
        live.session.detached_s = time.monotonic()
        if self._numbers.entry is not None:
            self._numbers.entry.attempt(1)
        return True

    def _queued(self, entry: PendingRequest, work: Work, after_arrivals: AfterArrivals | None) -> bool:
        """Queue one request, or hold it; True if there is room for more. Called under the lock."""
        if self._held is None:
            return self._submit(entry, work, after_arrivals)
        self._held.append((entry, work))
        return len(self._held) < self._queue

    def _submit(self, entry: PendingRequest, work: Work, after_arrivals: AfterArrivals | None = None) -> bool:
        """Queue one request, and hold those behind it if it asks for states. Called under the lock."""
        live = self._live
        assert live is not None
        if entry.plan.answer.states:
            self._held = deque()
        self._pending.append(entry)
        return live.model.batcher.submit(live.session, work, after_arrivals)

    def _release(self) -> None:
        """Submit the held requests, up to the first one that asks for states."""
        with self._lock:
            if self._live is None:
                return
            held, self._held = self._held, None
            while held and not self._holds():
                self._submit(*held.popleft())
            if held:
                self._held = held
        self.resume()

    def _holds(self) -> bool:
        return self._held is not None

    def _over_if_done(self) -> None:
        with self._lock:
            if self._pending or self._held or self._finished:
                return
        self._over(None)

    def _over(self, error: ServiceError | None) -> None:
        with self._lock:
            live, model = self._live, self.model
            if model is None:
                return
            self._ended(self, error)  # first: another thread may see `closing` and look the reason up
            self.closing = True
            self.model = self._live = self._last = None
            lost = [*self._pending, *[entry for entry, _ in self._held or ()], *self._numbers.clear()]
            self._pending.clear()
            self._held = None
            after, self._after = self._after, None
        if live is not None:
            self._sessions.end(live, self.reason if error is None else error.reason.lower())
        if error is not None and lost:
            model.metrics.request_failed(error)
            self._fail_all(lost, error)
        if self._paused:
            self.resume()
        if after is not None:
            with suppress(ServiceError):  # the held requests fail with it
                after.begin()

    def _fail_all(self, lost: list[PendingRequest], error: ServiceError) -> None:
        behind = error
        if isinstance(error, InvalidArgument):
            behind = SequenceGap(f"a request of this sequence before this one was refused: {error}")
        for at, entry in enumerate(lost):
            entry.fail(behind if at else error, self.key)
