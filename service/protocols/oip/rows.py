"""A request of the Open Inference Protocol without a sequence, and its rows."""

from __future__ import annotations

from collections.abc import Iterator

from streamcell.service.access.grant import Grant
from streamcell.service.errors import ServiceError, TooManyRows
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.openings import row_openings
from streamcell.service.protocols.common.requests import Limits, make_rows
from streamcell.service.protocols.common.unary_rows import RequestRows
from streamcell.service.sessions.session import Output

from .entry import IncomingRequest
from .requests import ParsedRequest


def openings(model: LoadedModel, plan: ParsedRequest, limits: Limits) -> Iterator[tuple[bytes, ...]]:
    """What each row of a request is given, or the session that it starts; as `row_openings`."""
    return row_openings(
        model.file.signature, plan.given, plan.form.rows, allow_non_finite=limits.allow_non_finite
    )


class Rows(RequestRows):
    """One request and its rows."""

    __slots__ = ("_entry",)

    def __init__(self, entry: IncomingRequest, model: LoadedModel) -> None:
        self._entry = entry
        self._model = model

    def run(self, payloads: tuple[bytes, ...], limits: Limits, grant: Grant | None = None) -> None:
        """Queue the rows, as the entry's plan says.

        Args:
            payloads: one an input, [rows, steps, *step_shape] each.
            limits: limits of one message.
            grant: as in `start`.

        Raises:
            TooManyRows: there are more rows than the model may have sessions.
            SessionLimit: the model has too few free slots for all rows; none is left taken.
            InvalidArgument: as `make_work`.
        """
        plan, most = self._entry.plan, self._model.max_sessions
        rows = plan.form.rows
        if rows > most:
            raise TooManyRows(
                f"a request may carry {most} rows, this one carries {rows}", limit=most, got=rows
            )
        work = make_rows(self._model, limits, payloads, plan.form.steps, Output.ALL, rows)
        given = openings(self._model, plan, limits) if self._model.file.signature.open_inputs else ()
        self.start(work, self._entry, states=bool(plan.answer.states), openings=given, grant=grant)

    def _answer(self, outputs: list[bytes], steps: int) -> None:
        self._entry.answer(outputs)

    def _refuse(self, error: ServiceError) -> None:
        self._entry.fail(error, None)
