"""The Open Inference Protocol's repository calls: what could be served, and loading and unloading it.

Loading takes as long as it takes and unloading waits for sessions, so both are answered when they are done and no
thread waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from streamcell.proto.inference import oip

from .calls import FAULT, Lane, UnaryCall
from .control import unary
from .errors import LoadParameter, MalformedMessage, ServiceError, as_status, shown
from .metrics import ServerMetrics
from .model_control import ModelControl

# What Triton's clients always send with an unload. No model here depends on another.
_UNLOAD_PARAMETERS = ("unload_dependents",)


class _Ask(Protocol):
    model_name: str
    repository_name: str
    parameters: Any


_Request = TypeVar("_Request", bound=Message)


class OipRepository:
    """`RepositoryIndex`, `RepositoryModelLoad` and `RepositoryModelUnload`."""

    def __init__(self, control: ModelControl, metrics: ServerMetrics) -> None:
        self._control = control
        self._metrics = metrics

    def handlers(self, lane: Lane) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The method handlers by name."""
        return {
            "RepositoryIndex": unary(self.index, oip.RepositoryIndexRequest, self._metrics),
            "RepositoryModelLoad": lane.unary(
                self._later(oip.RepositoryModelLoadRequest, self.load, oip.RepositoryModelLoadResponse())
            ),
            "RepositoryModelUnload": lane.unary(
                self._later(
                    oip.RepositoryModelUnloadRequest, self.unload, oip.RepositoryModelUnloadResponse()
                )
            ),
        }

    def index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        """Every version of every model, or only those that are ready."""
        return oip.RepositoryIndexResponse(
            models=[
                oip.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
                for entry in self._control.index()
                if entry.state == "READY" or not request.ready
            ]
        )

    def load(self, request: oip.RepositoryModelLoadRequest) -> Future[None]:
        """Load what the folder has of a model; raises LoadParameter, and as `ModelControl.load`."""
        _check(request, ())
        return self._control.load(request.model_name)

    def unload(self, request: oip.RepositoryModelUnloadRequest) -> Future[None]:
        """Unload a model; raises LoadParameter, and as `ModelControl.unload`."""
        _check(request, _UNLOAD_PARAMETERS)
        return self._control.unload(request.model_name)

    def _later(
        self, request_type: type[_Request], method: Callable[[_Request], Future[None]], answer: Message
    ) -> Callable[[UnaryCall, bytes], None]:
        def call(call: UnaryCall, data: bytes) -> None:
            def finish(done: Future[None]) -> None:
                error = done.exception()
                if error is None:
                    call.answer(answer.SerializeToString())
                elif isinstance(error, ServiceError):
                    refuse(error)
                else:
                    call.fail(grpc.StatusCode.INTERNAL, FAULT)

            def refuse(error: ServiceError) -> None:
                self._metrics.error(error)
                call.fail(*as_status(error))

            try:
                try:
                    request = request_type.FromString(data)
                except DecodeError as error:
                    raise MalformedMessage(
                        f"the message is not a {request_type.DESCRIPTOR.full_name}"
                    ) from error
                method(request).add_done_callback(finish)
            except ServiceError as error:
                refuse(error)

        return call


def _check(request: _Ask, known: Collection[str]) -> None:
    """Refuse what a model's files say here: configurations and files that come with the call."""
    unknown = min(set(request.parameters) - set(known), default=None)
    if unknown is not None:
        raise LoadParameter(
            f"parameter {shown(unknown)}: a model is described by its files on the server; put the .onnx file, and a "
            "sidecar where it needs one, into the folder of models and load it without parameters",
            parameter=unknown,
        )
