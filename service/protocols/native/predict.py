"""One `Predict` call."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from streamcell.proto import pb
from streamcell.service.errors import MalformedMessage, ServerDraining, ServiceError, addressed, as_status
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.protocols.common.openings import given_in, row_openings
from streamcell.service.protocols.common.requests import (
    check_dtypes,
    check_size,
    count_steps,
    make_rows,
    make_work,
    output_mode,
)
from streamcell.service.protocols.common.unary_rows import RequestRows
from streamcell.service.sessions.session import Output
from streamcell.service.transport.calls import UnaryCall

from .wire import only_predict, predict_response


class PredictCall(RequestRows):
    """One call and its rows."""

    __slots__ = ("_call", "_context")

    def __init__(self, call: UnaryCall, context: CallContext[LoadedModel], model: LoadedModel) -> None:
        self._call = call
        self._context = context
        self._model = model

    def _answer(self, outputs: list[bytes], steps: int) -> None:
        file = self._model.file
        self._call.answer(predict_response(outputs, len(self._outputs), steps, file.name, file.version))

    def _refuse(self, error: ServiceError) -> None:
        self._context.metrics.error(addressed(error, self._call))
        self._call.fail(*as_status(error))


def predict(call: UnaryCall, data: bytes, context: CallContext[LoadedModel]) -> None:
    """Answer one `Predict` request."""
    model: LoadedModel | None = None
    openings: Iterable[tuple[bytes, ...]] = ()
    allowed = context.limits.allow_non_finite
    try:
        if context.sessions.draining:
            raise ServerDraining("this server is shutting down and takes no new calls")
        check_size(data, context.limits)
        if context.grant is not None:
            context.grant.expect_room()
        # What most calls carry: one row of one tensor, for the newest version of a model.
        if (plain := only_predict(data)) is not None and plain[0].isascii():
            model = context.models.find(plain[0].decode())
            tensors = plain[1:]
            steps = count_steps(model.file.signature, tensors, 0)
            one = make_work(model, context.limits, tensors, steps, Output.ALL, 0)
            if model.file.signature.open_inputs:
                openings = row_openings(model.file.signature, (), 1, allow_non_finite=allowed)
            PredictCall(call, context, model).start([one], call, openings=openings, grant=context.grant)
            return
        try:
            request = pb.PredictRequest.FromString(data)
        except DecodeError as error:
            raise MalformedMessage("the message is not a streamcell.v1.PredictRequest") from error
        model = context.models.find(request.model, request.version)
        signature = model.file.signature
        check_dtypes(signature, request.dtypes)
        rows = request.batch or 1
        payloads = tuple(request.inputs)
        steps = count_steps(signature, payloads, request.steps, rows)
        output = output_mode(request.output_mode, Output.ALL)
        work = make_rows(model, context.limits, payloads, steps, output, rows)
        if signature.open_inputs or request.open_inputs:
            given = given_in(signature, request.open_inputs)
            openings = row_openings(signature, given, rows, allow_non_finite=allowed)
        PredictCall(call, context, model).start(work, call, openings=openings, grant=context.grant)
    except ServiceError as error:
        context.metrics.error(addressed(error, call))
        if model is not None:
            model.metrics.request_failed(error)
        call.fail(*as_status(error))
