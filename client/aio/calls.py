"""The unary calls of the asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from streamcell.client import values
from streamcell.client.channel import Metadata
from streamcell.client.errors import InvalidInput
from streamcell.client.protocol import predict as predictions
from streamcell.client.protocol.health import CHECK, check_request, is_serving
from streamcell.client.protocol.opening import OpenInputs
from streamcell.client.protocol.signature import OutputMode, SignatureCodec
from streamcell.client.protocol.ticket import Ticket
from streamcell.client.protocol.way import Way
from streamcell.proto import pb


class AsyncCalls:
    """One method for each unary call of the server; a subclass implements `_unary`."""

    def __init__(self) -> None:
        self._codecs: dict[tuple[str, str], SignatureCodec] = {}

    async def _unary(
        self, method: str, request: Any, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Any:
        """Call a method, as for `Line.call`, and return its reply. Raises a StreamCellError for any status but OK."""
        raise NotImplementedError

    async def predict(
        self,
        model: str,
        x: Any,
        *,
        version: str = "",
        output: OutputMode | None = None,
        open_inputs: OpenInputs = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Run whole sequences from the initial state; the server keeps no state.

        `x[T, *step_shape]` is one sequence and gives `y[T, *step_shape]`; `x[B, T, *step_shape]` is a batch of B
        independent ones and gives `y[B, T, *step_shape]`. In mode "last" T is 1 in the output. For a stateless
        model every timestep is a row of its own, so `x[N, *step_shape]` is N rows. Otherwise inputs and outputs
        are as for a session. `open_inputs` are a session's `inputs`, of a batch `[B, *shape]` each.
        """
        key = (model, version)
        codec = known = self._codecs.get(key)
        try:
            if codec is None:
                codec = await self._signature(key, timeout_s)
            try:
                request, batched = predictions.request(codec, model, version, x, output, open_inputs)
            except InvalidInput:
                if known is None:
                    raise
                codec = await self._signature(key, timeout_s)  # the model may have changed
                request, batched = predictions.request(codec, model, version, x, output, open_inputs)
            reply = await self._unary("Predict", request, timeout_s)
            outputs = predictions.outputs(codec, reply, batched)
        except Exception:
            self._codecs.pop(key, None)  # the model may have changed: fetch the signature again next time
            raise
        self._codecs[key] = codec
        return outputs

    async def _signature(self, key: tuple[str, str], timeout_s: float | None) -> SignatureCodec:
        found = (await self._unary("GetModel", predictions.get_model(*key), timeout_s)).model
        return SignatureCodec(found.inputs, found.outputs)

    async def models(self) -> list[values.Model]:
        """Every model that can be opened."""
        reply = await self._unary("ListModels", pb.ListModelsRequest())
        return [values.model(each) for each in reply.models]

    async def replica(self) -> values.Replica:
        """The server that answers; behind a proxy any of several."""
        return values.replica((await self._unary("ListModels", pb.ListModelsRequest())).replica)

    async def model(self, name: str, version: str = "") -> values.Model:
        """One model; its newest version if none is named. Raises ModelNotFound."""
        return values.model((await self._unary("GetModel", predictions.get_model(name, version))).model)

    async def sessions(self, model: str = "") -> AsyncIterator[values.LiveSession]:
        """Yield the live sessions of all clients, oldest first; only those on `model` if it is given."""
        token = ""
        while True:
            request = pb.ListSessionsRequest(model=model, page_token=token)
            page = await self._unary("ListSessions", request)
            for each in page.sessions:
                yield values.live_session(each)
            token = page.next_page_token
            if not token:
                return

    async def close_session(self, session_id: str, ticket: Ticket | None = None) -> int:
        """End any client's session; return the timesteps that it had applied. Raises SessionNotFound.

        A session that can be resumed needs its `ticket`.
        """
        token = bytes.fromhex(ticket.token) if ticket else b""
        request = pb.CloseSessionRequest(session_id=session_id, token=token)
        said = Way(bytes.fromhex(ticket.session), ticket.replica).metadata() if ticket else ()
        reply = await self._unary("CloseSession", request, metadata=said)
        index: int = reply.step_index
        return index

    async def drain(self, *, timeout_s: float | None = None) -> tuple[int, float]:
        """Have the server shut down, if it was started with --remote-drain.

        It takes no new sessions from then on. Returns how many are live, and how many seconds they have left.
        """
        reply = await self._unary("Drain", pb.DrainRequest(), timeout_s)
        return reply.live_sessions, reply.grace_s

    async def drain_replica(self, fraction: float, *, timeout_s: float | None = None) -> int:
        """Have the server move this part of its sessions in the shared store to other replicas; idle ones go first.

        Returns how many sessions will go. With a fraction of 1 it takes no new sessions from then on.

        Raises:
            InvalidInput: the fraction is not above 0 and at most 1.
            ProtocolMisuse: the server has no store.
            Unavailable: STILL_MOVING: a part is moving already; a fraction of 1 takes its place.
            StreamCellError: it was not started with --remote-drain.
        """
        request = pb.DrainReplicaRequest(fraction=fraction)
        count: int = (await self._unary("DrainReplica", request, timeout_s)).sessions
        return count

    async def load_model(self, name: str, *, timeout_s: float | None = None) -> None:
        """Have the server load what its folder has of a model, if it was started with --model-control explicit.

        Raises:
            NotFound: there is no such model in the folder.
            StreamCellError: it cannot be served, or the server loads nothing at a client's request.
        """
        from streamcell.proto.inference import oip

        await self._repository_call(
            "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=name), timeout_s
        )

    async def unload_model(self, name: str, *, timeout_s: float | None = None) -> None:
        """Have the server stop serving a model; returns once its sessions have ended and its memory is free.

        Raises:
            NotFound: it is not served.
            StreamCellError: it has live sessions and the server does not wait for them, or it unloads nothing at a
                client's request.
        """
        from streamcell.proto.inference import oip

        await self._repository_call(
            "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=name), timeout_s
        )

    async def repository(self, *, timeout_s: float | None = None) -> list[values.Available]:
        """Every version of every model that is served or, under model control, in the server's folder."""
        from streamcell.proto.inference import oip

        reply = await self._repository_call("RepositoryIndex", oip.RepositoryIndexRequest(), timeout_s)
        index = oip.RepositoryIndexResponse.FromString(reply)
        return [values.Available(each.name, each.version, each.state, each.reason) for each in index.models]

    async def _repository_call(self, method: str, request: Any, timeout_s: float | None) -> bytes:
        """Call a method of the Open Inference Protocol, whose messages are imported only then."""
        path = f"/inference.GRPCInferenceService/{method}"
        reply: bytes = await self._unary(path, request.SerializeToString(), timeout_s)
        return reply

    async def ready(self, model: str = "", *, timeout_s: float | None = None) -> bool:
        """True if the server, or one of its models, takes sessions: the standard gRPC health check.

        Raises:
            NotFound: the server knows no such model.
            Unavailable, DeadlineExceeded: the server does not answer.
        """
        return is_serving(await self._unary(CHECK, check_request(model), timeout_s))
