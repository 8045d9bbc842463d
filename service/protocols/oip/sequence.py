"""One sequence of the Open Inference Protocol: a session that requests reach by an id of the client's choice."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from streamcell.service.batching.inline import Soon
from streamcell.service.errors import InvalidArgument, SequenceGap, ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.sessions.session import Work
from streamcell.service.sessions.table import Live, SessionTable

from .entry import PendingRequest
from .requests import Key


class Sequence:
    """The owner of one session, from a START to whichever end comes first.

    Requests may come from several streams and calls at once; they are applied in the order in which `add` saw them.
    They are held back while the sequence before under the same id is not done, and behind one that asks for states:
    what is in the pool after a run is the state after the last step of it.
    """

    __slots__ = (
        "_after", "_ended", "_held", "_last", "_live", "_lock", "_paused", "_pending", "_queue", "_sessions", "closing",
        "key", "model", "peer", "reason",
    )  # fmt: skip

    def __init__(
        self,
        key: Key,
        model: LoadedModel,
        sessions: SessionTable,
        ended: Callable[[Sequence, ServiceError | None], None],
        peer: str,
        queue: int,
    ) -> None:
        """A sequence that has not begun: what is added is held until `begin`.

        Args:
            ended: told when it is over, with the error that ended it, None where a request did. Called with the lock.
            queue: requests that may wait before their streams are no longer read.
        """
        self.key = key
        self.model: LoadedModel | None = model
        self.peer = peer
        self.reason = "closed"
        # A request has ended it: no more are taken; those taken are answered.
        self.closing = False
        self._sessions = sessions
        self._ended = ended
        self._queue = queue
        self._lock = threading.Lock()
        self._live: Live[LoadedModel] | None = None
        self._pending: deque[PendingRequest] = deque()  # submitted, in order
        self._held: deque[tuple[PendingRequest, Work]] | None = deque()
        self._paused: list[PendingRequest] = []  # of streams that are not read
        self._last: PendingRequest | None = None  # taken last
        self._after: Sequence | None = None  # begins when this one is over

    # For those who bring requests

    def begin(self) -> None:
        """Open the session and submit what is held.

        Raises:
            SessionLimit, ServerDraining: it could not be opened; what was held has failed.
        """
        model = self.model
        assert model is not None
        try:
            live = self._sessions.open(model, self, self.peer)
        except ServiceError as error:
            self._over(error)
            raise
        with self._lock:
            over = self.model is None
            if not over:
                self._live = live
        if over:  # ended between the two, by a shutdown for one
            self._sessions.end(live, "cancelled")
            return
        self._release()
        if self.closing:
            self._over_if_done()

    def begin_late(self) -> None:
        """`begin`, where no caller waits to hear of an error: those whose requests are held are told."""
        try:
            self.begin()
        except ServiceError:
            return

    def add(self, entry: PendingRequest, work: Work, soon: Soon | None = None) -> bool | None:
        """Take one request; whether there is room for more, or None where the sequence takes none.

        Where there is no room, `entry.resume` is called once there is. `soon` is as in `Batcher.submit`.
        """
        flags = entry.plan.flags
        with self._lock:
            if self.closing:
                return None
            self.closing = flags.end
            self._last = entry
            if self._held is None:
                room = self._submit(entry, work, soon)
            else:
                self._held.append((entry, work))
                room = len(self._held) < self._queue
            if not room:
                self._paused.append(entry)
            return room

    def close(self, reason: str, after: Sequence | None = None) -> bool:
        """Take no more requests and end when those taken are answered; False where it is over by now.

        Args:
            reason: a metrics label.
            after: the sequence that is to begin then. Where this one is over by now, its `begin` is the caller's.
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
        """Whether it was last used before that time, has nothing to do, and the stream of its last request is gone."""
        live, last = self._live, self._last
        if live is None or self._pending or self._held or (last is not None and not last.gone):
            return False
        return live.session.last_used_s < before_s

    # The session's side, on the engine's thread

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Answer the oldest request; after the last one of a sequence that was ended, it is over."""
        with self._lock:
            if not self._pending:  # it has just been ended by another thread
                return
            entry, live = self._pending.popleft(), self._live
        if entry.plan.answer.states:
            assert live is not None
            # Should it end right now, its row is still as it was: only the thread that runs batches writes rows.
            outputs = [*outputs, *live.model.read_states(live.session)]
            self._release()
        if self.closing:
            self._over_if_done()
        entry.answer(outputs)

    def resume(self) -> None:
        """The queue has room again."""
        with self._lock:
            paused, self._paused = self._paused, []
        for entry in paused:
            entry.resume()

    def fail(self, error: ServiceError) -> None:
        """End the session: the oldest request fails with `error`, those behind it were not applied either."""
        self._over(error)

    # Inside

    def _submit(self, entry: PendingRequest, work: Work, soon: Soon | None = None) -> bool:
        """Queue one request, and hold those behind it where it asks for states. With the lock."""
        live = self._live
        assert live is not None
        if entry.plan.answer.states:
            self._held = deque()
        self._pending.append(entry)
        return live.model.batcher.submit(live.session, work, soon)

    def _release(self) -> None:
        """Submit what was held, up to the first request that asks for states."""
        with self._lock:
            if self._live is None:
                return
            held, self._held = self._held, None
            while held and self._held is None:
                self._submit(*held.popleft())
            if held:
                self._held = held
        self.resume()

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
            self._ended(self, error)  # before it shows: who finds it closing is to find out why
            self.closing = True
            self.model = self._live = self._last = None
            lost = [*self._pending, *(entry for entry, _ in self._held or ())]
            self._pending.clear()
            self._held = None
            after, self._after = self._after, None
        if live is not None:
            self._sessions.end(live, self.reason if error is None else error.reason.lower())
        if error is not None and lost:
            model.metrics.request_failed(error)
            self._fail_all(lost, error)
        self.resume()
        if after is not None:
            after.begin_late()

    def _fail_all(self, lost: list[PendingRequest], error: ServiceError) -> None:
        behind = error
        if isinstance(error, InvalidArgument):
            behind = SequenceGap(f"a request of this sequence before this one was refused: {error}")
        for at, entry in enumerate(lost):
            entry.fail(behind if at else error, self.key)
