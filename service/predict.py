"""One `Predict` call: each row is a session that lives for one message, so rows of all calls batch together."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from streamcell.proto import pb

from .calls import UnaryCall
from .errors import MalformedMessage, ServerDraining, ServiceError, as_status
from .loaded import LoadedModel
from .requests import check_dtypes, check_size, count_steps, make_work, output_mode
from .session import Output, Session, Work
from .stream import Service
from .wire import only_predict, predict_response


class PredictCall:
    """The owner of one call's rows. Replies and failures come on the engine's thread, a cancellation on grpcio's."""

    __slots__ = ("_call", "_model", "_outputs", "_rows", "_service", "_sessions", "_waiting")

    def __init__(self, call: UnaryCall, service: Service, model: LoadedModel, rows: int) -> None:
        self._call = call
        self._service = service
        self._model = model
        self._rows = rows
        self._waiting = rows
        self._sessions: list[Session] = []
        self._outputs: list[list[bytes]] = [[] for _ in range(rows)]

    def start(self, work: list[Work]) -> None:
        """Open a session a row and queue its work; `work[i].tag` is i.

        Raises:
            SessionLimit: the model has too few free slots for all rows; none is left taken.
        """
        batcher = self._model.batcher
        try:
            for _ in work:
                self._sessions.append(batcher.open("", self))
        except ServiceError:
            self._end()
            raise
        sessions = self._sessions
        self._call.on_cancel(self.cancel)
        for session, row in zip(sessions, work, strict=True):
            batcher.submit(session, row, self._call.soon)

    def deliver(self, work: Work, outputs: list[bytes], steps: int, step_index: int) -> None:
        """Keep one row's outputs; answer once all rows are there."""
        self._outputs[work.tag] = outputs
        self._waiting -= 1
        if self._waiting:
            return
        self._end()
        if self._rows > 1:
            outputs = [b"".join(tensors) for tensors in zip(*self._outputs, strict=True)]
        file = self._model.file
        self._call.answer(predict_response(outputs, self._rows, steps, file.name, file.version))

    def resume(self) -> None:
        """A row's queue is never full: it holds one message."""

    def fail(self, error: ServiceError) -> None:
        """Fail the whole call: none of its rows is answered. The first failure stands."""
        if self._waiting <= 0:
            return
        self._waiting = 0
        self._end()
        self._service.metrics.error(error)
        self._model.metrics.request_failed(error)
        self._call.fail(*as_status(error))

    def cancel(self) -> None:
        """The client has gone."""
        self._end()

    def _end(self) -> None:
        # A session knows its owner: forgetting them leaves no cycle for the garbage collector.
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            self._model.batcher.end(session)


def predict(call: UnaryCall, data: bytes, service: Service) -> None:
    """Answer one `Predict` request."""
    model: LoadedModel | None = None
    try:
        if service.sessions.draining:
            raise ServerDraining("this server is shutting down and takes no new calls")
        check_size(data, service.limits)
        # What most calls carry: one row of one tensor, for the newest version of a model.
        if (plain := only_predict(data)) is not None and plain[0].isascii():
            model = service.models.find(plain[0].decode())
            tensors = plain[1:]
            steps = count_steps(model.file.signature, tensors, 0)
            one = make_work(model, service.limits, tensors, steps, Output.ALL, 0)
            PredictCall(call, service, model, 1).start([one])
            return
        try:
            request = pb.PredictRequest.FromString(data)
        except DecodeError as error:
            raise MalformedMessage("the message is not a streamcell.v1.PredictRequest") from error
        model = service.models.find(request.model, request.version)
        signature = model.file.signature
        check_dtypes(signature, request.dtypes)
        rows = request.batch or 1
        payloads = tuple(request.inputs)
        steps = count_steps(signature, payloads, request.steps, rows)
        output = output_mode(request.output_mode, Output.ALL)
        work = []
        for row in range(rows):
            mine = payloads
            if rows > 1:
                sizes = [steps * tensor.step_bytes for tensor in signature.inputs]
                mine = tuple(
                    payload[row * size : (row + 1) * size]
                    for payload, size in zip(payloads, sizes, strict=True)
                )
            work.append(make_work(model, service.limits, mine, steps, output, row))
            work[-1].counted = row == rows - 1
        PredictCall(call, service, model, rows).start(work)
    except ServiceError as error:
        service.metrics.error(error)
        if model is not None:
            model.metrics.request_failed(error)
        call.fail(*as_status(error))
