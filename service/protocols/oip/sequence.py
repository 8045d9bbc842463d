"""One sequence of the Open Inference Protocol: a session that requests reach by a client's id."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from streamcell.service.batching.inline import AfterArrivals
from streamcell.service.errors import InvalidArgument, SequenceGap, ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.sessions.session import Work
from streamcell.service.sessions.table import Live, SessionTable

from .entry import PendingRequest
from .requests import Key


class Sequence:
    """The owner of one session, from a START to its first end.

    Requests may come from several streams and calls at once; they are applied in the order in which `add` saw them.
    They are held back while an earlier sequence under the same id is not done, and behind one that asks for states:
    after a run the pool holds only the state after its last step.
    """

    __slots__ = (
        "_after", "_ended", "_held", "_last", "_live", "_lock", "_opening", "_paused", "_pending", "_queue",
        "_sessions", "closing", "key", "model", "peer", "reason",
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
    ) -> None:
        """A sequence that has not begun: `begin` submits the requests that `add` holds.

        Args:
            ended: called under the lock when it is over, with the error that ended it; None if a request ended it.
            opening: what its session is given, a value an open input.
            queue: requests that may wait before their streams are no longer read.
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
        self._lock = threading.Lock()
        self._live: Live[LoadedModel] | None = None
        self._pending: deque[PendingRequest] = deque()  # submitted, in order
        self._held: deque[tuple[PendingRequest, Work]] | None = deque()
        self._paused: list[PendingRequest] = []  # of streams that are not read
        self._last: PendingRequest | None = None  # taken last
        self._after: Sequence | None = None  # begins when this one is over

    # The calls' side

    def begin(self) -> None:
        """Open the session and submit what is held.

        Raises:
            SessionLimit, ServerDraining: it could not be opened; the held requests have failed.
        """
        model = self.model
        assert model is not None
        try:
            live = self._sessions.open(model, self, self.peer)
            live.session.opening = self._opening
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

    def begin_late(self) -> None:
        """Like `begin`, if no caller waits for an error: the held requests fail with it."""
        try:
            self.begin()
        except ServiceError:
            return

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
            elif self._held is None:
                room = self._submit(entry, work, after_arrivals)
            else:
                self._held.append((entry, work))
                room = len(self._held) < self._queue
            if not room:
                self._paused.append(entry)
            return room

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
        return live.session.last_used_s < before_s

    # The session's side, on the engine thread

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Answer the oldest request; after the last one of a sequence that was ended, it is over."""
        with self._lock:
            if not self._pending:  # it has just been ended by another thread
                return
            entry, live = self._pending.popleft(), self._live
            done = self.closing and not self._pending and not self._held
        if entry.plan.answer.states:
            assert live is not None
            # If it ends right now, its row is unchanged: only the thread that runs batches writes rows.
            outputs = [*outputs, *live.model.read_states(live.session)]
            self._release()
            if self.closing:
                self._over_if_done()
        elif done:
            self._over(None)
        entry.answer(outputs)

    def resume(self) -> None:
        """The queue has room again."""
        with self._lock:
            paused, self._paused = self._paused, []
        for entry in paused:
            entry.resume()

    def fail(self, error: ServiceError) -> None:
        """End the session: the oldest request fails with `error`, and so do those behind it."""
        self._over(error)

    # Inside

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
            if self._pending or self._held:
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
            lost = [*self._pending, *[entry for entry, _ in self._held or ()]]
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
            after.begin_late()

    def _fail_all(self, lost: list[PendingRequest], error: ServiceError) -> None:
        behind = error
        if isinstance(error, InvalidArgument):
            behind = SequenceGap(f"a request of this sequence before this one was refused: {error}")
        for at, entry in enumerate(lost):
            entry.fail(behind if at else error, self.key)
