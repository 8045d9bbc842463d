"""The calls that run no model: they list models and sessions, close sessions and drain the server."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol

from streamcell.proto import pb
from streamcell.service.access.identity import Identity
from streamcell.service.access.operators import check_operator
from streamcell.service.control_errors import DrainOff, NoStore
from streamcell.service.errors import InvalidArgument, WrongParameter, shown
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.scopes import Scopes
from streamcell.service.transport.answering import Answering
from streamcell.service.transport.calls import Handler, Lane

from .messages import model_message, session_message

_PAGE_SIZE = 1000  # the most sessions of a page
_SLICE = 64  # sessions that one slice encodes
_TOKEN_DIGITS = 18


class _BadPageToken(InvalidArgument):
    reason = "BAD_PAGE_TOKEN"


class SharedStore(Protocol):
    """What operators are told of a shared store: its host and port, and seconds left of the lease."""

    where: str

    def lease_left_s(self) -> float: ...


class Management:
    """`ListModels`, `GetModel`, `ListSessions`, `CloseSession`, `Drain` and `DrainReplica`."""

    def __init__(
        self,
        scopes: Scopes[LoadedModel],
        grace_s: float = 0.0,
        drain: Callable[[], None] | None = None,
        move: Callable[[float], int] | None = None,
        store: SharedStore | None = None,
    ) -> None:
        """Make them.

        Args:
            scopes: what each caller sees.
            grace_s: seconds that `drain` gives sessions.
            drain: has the server shut down; None: no client may ask for it, nor for a part of it.
            move: begins to move this part of the sessions in the store to other replicas, and returns how many
                sessions that is; None: there is no store.
            store: that has the sessions; None: there is none.
        """
        self._scopes = scopes
        self._grace_s = grace_s
        self._drain = drain
        self._move = move
        self._store = store

    def handlers(self, lane: Lane, answering: Answering) -> dict[str, Handler]:
        """The method handlers by name."""
        return {
            "ListModels": lane.unary(answering.now(pb.ListModelsRequest, self.list_models)),
            "GetModel": lane.unary(answering.now(pb.GetModelRequest, self.get_model)),
            "ListSessions": lane.unary(answering.sliced(pb.ListSessionsRequest, self.list_sessions)),
            "CloseSession": lane.unary(answering.now(pb.CloseSessionRequest, self.close_session)),
            "Drain": lane.unary(answering.now(pb.DrainRequest, self.drain)),
            "DrainReplica": lane.unary(answering.now(pb.DrainReplicaRequest, self.drain_replica)),
        }

    def list_models(self, request: pb.ListModelsRequest, caller: Identity) -> pb.ListModelsResponse:
        """Every model and version, and which replica this is."""
        context = self._scopes.of(caller)
        replica = pb.Replica(name=context.replica.name, address=context.replica.address)
        if self._store is not None and caller.operator:
            replica.store, replica.lease_s = self._store.where, self._store.lease_left_s()
        return pb.ListModelsResponse(
            models=[model_message(model, context.limits) for model in context.models], replica=replica
        )

    def get_model(self, request: pb.GetModelRequest, caller: Identity) -> pb.GetModelResponse:
        """One model; raises ModelNotFound or VersionNotFound."""
        context = self._scopes.of(caller)
        model = context.models.find(request.model, request.version)
        return pb.GetModelResponse(model=model_message(model, context.limits))

    def list_sessions(
        self, request: pb.ListSessionsRequest, caller: Identity
    ) -> Generator[None, None, pb.ListSessionsResponse]:
        """A page of the caller's live sessions, or of all for operators, oldest first, in slices.

        A page token is the place of the last one before it.
        """
        context, whose = self._scopes.of(caller), self._scopes.whose(caller)
        if request.model:
            context.models.find(request.model)
        after = _place(request.page_token)
        size = min(request.page_size or _PAGE_SIZE, _PAGE_SIZE)
        response = pb.ListSessionsResponse()
        context.sessions.catch_up()
        while True:
            count = min(_SLICE, size - len(response.sessions))
            live, after, more = context.sessions.page(request.model, after, count, whose)
            response.sessions.extend(map(session_message, live))
            if not more or len(response.sessions) >= size:
                break
            yield
        if more:
            response.next_page_token = str(after)
        return response

    def close_session(self, request: pb.CloseSessionRequest, caller: Identity) -> pb.CloseSessionResponse:
        """End a session of the caller's, or anybody's for operators; raises SessionNotFound."""
        whose = self._scopes.whose(caller)
        step_index = self._scopes.whole.sessions.close(request.session_id, request.token, whose)
        return pb.CloseSessionResponse(step_index=step_index)

    def drain(self, request: pb.DrainRequest, caller: Identity) -> pb.DrainResponse:
        """Begin to shut down, for operators; raises NotPermitted, DrainOff."""
        check_operator(caller, "Drain")
        drain = self._draining()
        live = len(self._scopes.whole.sessions)
        drain()
        return pb.DrainResponse(live_sessions=live, grace_s=self._grace_s)

    def drain_replica(self, request: pb.DrainReplicaRequest, caller: Identity) -> pb.DrainReplicaResponse:
        """Begin to move sessions away, for operators.

        Raises:
            NotPermitted, WrongParameter, NoStore, StillMoving, DrainOff, NoThread: none begins to move.
        """
        check_operator(caller, "DrainReplica")
        if not 0 < request.fraction <= 1:
            raise WrongParameter(
                f"fraction {request.fraction:g}: expected the part of the sessions that is to go, above 0 and at most 1"
            )
        if self._move is None:
            raise NoStore(
                "this server's sessions are in no shared store, so no other one can go on with them: start all of them "
                "with --store"
            )
        self._draining()
        return pb.DrainReplicaResponse(sessions=self._move(request.fraction))

    def _draining(self) -> Callable[[], None]:
        if self._drain is None:
            raise DrainOff(
                "this server does not shut down at a client's request: start it with --remote-drain, or send its "
                "process SIGTERM"
            )
        return self._drain


def _place(token: str) -> int:
    """The position that a page token names; 0 without one."""
    if not token:
        return 0
    if len(token) > _TOKEN_DIGITS or not (token.isascii() and token.isdigit()):
        raise _BadPageToken(
            f"page_token {shown(token)}: expected the `next_page_token` of an earlier reply; list from the start"
        )
    return int(token)
