"""The calls that run no model: they list models and sessions, and close sessions."""

from __future__ import annotations

from collections.abc import Generator

from streamcell.proto import pb
from streamcell.service.errors import InvalidArgument, shown
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.call_context import CallContext
from streamcell.service.transport.answering import Answering
from streamcell.service.transport.calls import Handler, Lane

from .messages import model_message, session_message

_PAGE_SIZE = 1000  # the most sessions of a page
_SLICE = 64  # sessions that one slice encodes
_TOKEN_DIGITS = 18


class _BadPageToken(InvalidArgument):
    reason = "BAD_PAGE_TOKEN"


class Management:
    """`ListModels`, `GetModel`, `ListSessions` and `CloseSession`."""

    def __init__(self, context: CallContext[LoadedModel]) -> None:
        self._context = context

    def handlers(self, lane: Lane, answering: Answering) -> dict[str, Handler]:
        """The method handlers by name."""
        return {
            "ListModels": lane.unary(answering.now(pb.ListModelsRequest, self.list_models)),
            "GetModel": lane.unary(answering.now(pb.GetModelRequest, self.get_model)),
            "ListSessions": lane.unary(answering.sliced(pb.ListSessionsRequest, self.list_sessions)),
            "CloseSession": lane.unary(answering.now(pb.CloseSessionRequest, self.close_session)),
        }

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Every model and version."""
        limits = self._context.limits
        return pb.ListModelsResponse(models=[model_message(model, limits) for model in self._context.models])

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """One model; raises ModelNotFound or VersionNotFound."""
        return pb.GetModelResponse(
            model=model_message(
                self._context.models.find(request.model, request.version), self._context.limits
            )
        )

    def list_sessions(
        self, request: pb.ListSessionsRequest
    ) -> Generator[None, None, pb.ListSessionsResponse]:
        """A page of the live sessions, oldest first, in slices. A page token is the place of the last one before it."""
        if request.model:
            self._context.models.find(request.model)
        after = _place(request.page_token)
        size = min(request.page_size or _PAGE_SIZE, _PAGE_SIZE)
        response = pb.ListSessionsResponse()
        self._context.sessions.catch_up()
        while True:
            count = min(_SLICE, size - len(response.sessions))
            live, after, more = self._context.sessions.page(request.model, after, count)
            response.sessions.extend(map(session_message, live))
            if not more or len(response.sessions) >= size:
                break
            yield
        if more:
            response.next_page_token = str(after)
        return response

    def close_session(self, request: pb.CloseSessionRequest) -> pb.CloseSessionResponse:
        """End a session; raises SessionNotFound."""
        step_index = self._context.sessions.close(request.session_id, request.token)
        return pb.CloseSessionResponse(step_index=step_index)


def _place(token: str) -> int:
    """The position that a page token names; 0 without one."""
    if not token:
        return 0
    if len(token) > _TOKEN_DIGITS or not (token.isascii() and token.isdigit()):
        raise _BadPageToken(
            f"page_token {shown(token)}: expected the `next_page_token` of an earlier reply; list from the start"
        )
    return int(token)
