"""A request without a sequence: each row is a session that lives for one message, so all calls' rows batch together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ServiceError, TooManyRows
from .loaded import LoadedModel
from .oip_tensors import Form
from .requests import Limits, make_work
from .session import Output, Session, Work

if TYPE_CHECKING:
    from .oip_infer import Incoming


class Rows:
    """The owner of one request's rows. Answers and failures come on the engine's thread, a cancellation on grpcio's."""

    __slots__ = ("_entry", "_model", "_sessions", "_tensors", "_waiting")

    def __init__(self, entry: Incoming, model: LoadedModel) -> None:
        self._entry = entry
        self._model = model
        self._sessions: list[Session] = []
        self._tensors: list[list[bytes]] = []
        self._waiting = 0

    def start(self, payloads: tuple[bytes, ...], form: Form, limits: Limits) -> None:
        """Open a session a row and queue its work.

        Args:
            payloads: one an input, [rows, steps, *step_shape] each.

        Raises:
            TooManyRows: there are more than the model may have sessions.
            SessionLimit: the model has too few free slots for all rows; none is left taken.
            InvalidArgument: as `make_work`.
        """
        most = self._model.max_sessions
        if form.rows > most:
            raise TooManyRows(
                f"a request may carry {most} rows, this one carries {form.rows}", limit=most, got=form.rows
            )
        batcher = self._model.batcher
        inputs = self._model.file.signature.inputs
        sizes = [form.steps * tensor.step_bytes for tensor in inputs]
        work = []
        for row in range(form.rows):
            mine = payloads
            if form.rows > 1:
                pairs = zip(payloads, sizes, strict=True)
                mine = tuple(payload[row * size : (row + 1) * size] for payload, size in pairs)
            work.append(make_work(self._model, limits, mine, form.steps, Output.ALL, row))
            work[-1].counted = row == form.rows - 1
        self._waiting = form.rows
        self._tensors = [[] for _ in work]
        try:
            for _ in work:
                self._sessions.append(batcher.open("", self))
        except ServiceError:
            self._end()
            raise
        sessions = list(self._sessions)
        self._entry.on_cancel(self)
        for session, one in zip(sessions, work, strict=True):
            batcher.submit(session, one, self._entry.soon)

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Keep one row's outputs; answer once all rows are there."""
        sessions = self._sessions
        if not sessions:
            return
        if self._entry.plan.answer.states:
            outputs = [*outputs, *self._model.read_states(sessions[work.tag])]
        self._tensors[work.tag] = outputs
        self._waiting -= 1
        if self._waiting:
            return
        self._end()
        if len(self._tensors) > 1:
            outputs = [b"".join(tensors) for tensors in zip(*self._tensors, strict=True)]
        self._entry.answer(outputs)

    def resume(self) -> None:
        """A row's queue is never full: it holds one message."""

    def fail(self, error: ServiceError) -> None:
        """Fail the whole request: none of its rows is answered. The first failure stands."""
        if self._waiting <= 0:
            return
        self._waiting = 0
        self._end()
        self._model.metrics.request_failed(error)
        self._entry.fail(error, None)

    def cancel(self) -> None:
        """The client has gone."""
        self._waiting = 0
        self._end()

    def _end(self) -> None:
        # A session knows its owner: forgetting them leaves no cycle for the garbage collector.
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            self._model.batcher.end(session)
