"""The rows of one request: each is a session that lives for one message, so the rows of all requests batch together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Protocol

from streamcell.service.access.grant import Grant, Taken
from streamcell.service.errors import ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.sessions.session import Session, Work


class UnaryCaller(Protocol):
    """The call that a request came from, such as a `calls.UnaryCall`."""

    @property
    def peer(self) -> str:
        """The client's address."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` if the client disconnects before the answer."""

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """Like `calls.UnaryCall.run_after_arrivals`, while the request is being taken."""


class RequestRows(ABC):
    """The listener of one request's rows. The engine thread delivers outputs and errors, grpcio's a cancellation."""

    __slots__ = ("_model", "_outputs", "_sessions", "_states", "_taken", "_waiting")

    _model: LoadedModel  # set by the subclass

    def start(
        self,
        work: list[Work],
        caller: UnaryCaller,
        *,
        states: bool = False,
        openings: Iterable[tuple[bytes, ...]] = (),
        grant: Grant | None = None,
    ) -> None:
        """Open a session for each row and queue its work; `work[i].tag` is i. Call it once.

        Args:
            work: as `requests.make_rows` gives it.
            caller: where the request came from.
            openings: by row what it is given at its opening, if the model has such inputs.
            states: whether the answer carries the model's states behind the outputs.
            grant: the tenant, if there are any: its rows are sessions of its own.

        Raises:
            QuotaExceeded: the tenant may not have so many sessions.
            SessionLimit: the model has too few free slots for all rows; none is left taken.
        """
        batcher = self._model.batcher
        self._states = states
        self._waiting = len(work)
        self._outputs: list[list[bytes]] = [[]] * self._waiting
        self._sessions: list[Session] = []
        self._taken = None if grant is None else Taken(grant, len(work))
        if grant is not None:
            grant.spend(len(work) * work[0].steps)
        try:
            for _ in work:
                session = batcher.open("", self, caller.peer)
                session.owner = grant
                self._sessions.append(session)
        except ServiceError:
            self._end()
            raise
        sessions = self._sessions
        for session, opening in zip(sessions, openings, strict=False):
            session.opening = opening
        caller.on_cancel(self.cancel)
        for session, row in zip(sessions, work, strict=True):
            batcher.submit(session, row, caller.run_after_arrivals)

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Keep one row's outputs; answer when all rows are complete."""
        sessions = self._sessions
        if not sessions:
            return
        if self._states:
            outputs = [*outputs, *self._model.read_states(sessions[work.tag])]
        self._outputs[work.tag] = outputs
        self._waiting -= 1
        if self._waiting:
            return
        self._end()
        if len(self._outputs) > 1:
            outputs = [b"".join(tensors) for tensors in zip(*self._outputs, strict=True)]
        self._answer(outputs, steps)

    def resume(self) -> None:  # noqa: B027  # not for subclasses
        """Never called: a row's queue, which holds one message, is never full."""

    def fail(self, error: ServiceError) -> None:
        """Fail the whole request: none of its rows is answered. Later failures are ignored."""
        if self._waiting <= 0:
            return
        self._waiting = 0
        self._end()
        self._model.metrics.request_failed(error)
        self._refuse(error)

    def cancel(self) -> None:
        """The client has gone: send and count nothing from now on."""
        self._waiting = 0
        self._end()

    @abstractmethod
    def _answer(self, outputs: list[bytes], steps: int) -> None:
        """Answer with one tensor for each output, [rows, steps, *step_shape]."""

    @abstractmethod
    def _refuse(self, error: ServiceError) -> None:
        """Answer with `error`, and count it."""

    def _end(self) -> None:
        # A session refers to its listener: dropping the sessions breaks the cycle.
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            self._model.batcher.end(session)
        if self._taken is not None:
            self._taken.give()
