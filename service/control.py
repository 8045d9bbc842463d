"""The calls that do not run a model: plain grpcio handlers on its thread pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import grpc

from streamcell.proto import pb

from .errors import InvalidArgument, ServiceError, as_status, shown
from .metrics import ServerMetrics
from .specs import model_message, session_message
from .stream import Service

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_PAGE_SIZE = 1000


class _BadPageToken(InvalidArgument):
    reason = "BAD_PAGE_TOKEN"


class Control:
    """`ListModels`, `GetModel`, `ListSessions` and `CloseSession`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The method handlers by name."""
        metrics = self._service.metrics
        return {
            "ListModels": unary(self.list_models, pb.ListModelsRequest, metrics),
            "GetModel": unary(self.get_model, pb.GetModelRequest, metrics),
            "ListSessions": unary(self.list_sessions, pb.ListSessionsRequest, metrics),
            "CloseSession": unary(self.close_session, pb.CloseSessionRequest, metrics),
        }

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Every model and version."""
        limits = self._service.limits
        return pb.ListModelsResponse(models=[model_message(model, limits) for model in self._service.models])

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """One model; raises ModelNotFound or VersionNotFound."""
        return pb.GetModelResponse(
            model=model_message(
                self._service.models.find(request.model, request.version), self._service.limits
            )
        )

    def list_sessions(self, request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
        """A page of the live sessions, oldest first. A page token is the id of the last session before the page."""
        live = self._service.sessions.all()
        if request.model:
            self._service.models.find(request.model)
            live = [each for each in live if each.model.file.name == request.model]
        if request.page_token:
            opened_s, _, session_id = request.page_token.partition(" ")
            try:
                after = (float(opened_s), session_id)
            except ValueError:
                raise _BadPageToken(
                    f"page_token {shown(request.page_token)}: expected the `next_page_token` of an earlier reply"
                ) from None
        else:
            after = (float("-inf"), "")
        keyed = sorted(((each.session.opened_s, each.session.session_id), each) for each in live)
        keyed = [(key, each) for key, each in keyed if key > after]
        size = request.page_size or _PAGE_SIZE
        page = keyed[:size]
        token = "{!r} {}".format(*page[-1][0]) if len(keyed) > size else ""
        return pb.ListSessionsResponse(
            sessions=[session_message(each) for _, each in page], next_page_token=token
        )

    def close_session(self, request: pb.CloseSessionRequest) -> pb.CloseSessionResponse:
        """End a session; raises SessionNotFound."""
        return pb.CloseSessionResponse(step_index=self._service.sessions.close(request.session_id))


def unary(
    method: Callable[[_Request], _Response], request_type: type[_Request], metrics: ServerMetrics
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler on grpcio's thread pool; a `ServiceError` that `method` raises becomes the call's status."""

    def call(request: _Request, context: grpc.ServicerContext) -> _Response:
        try:
            return method(request)
        except ServiceError as error:
            metrics.error(error)
            _abort(context, error)

    return grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=request_type.FromString,  # type: ignore[attr-defined]
        response_serializer=lambda reply: reply.SerializeToString(),
    )


def _abort(context: grpc.ServicerContext, error: ServiceError) -> NoReturn:
    code, text, trailing = as_status(error)
    context.set_trailing_metadata(trailing)
    context.abort(code, text)
    raise AssertionError("abort returns never")
