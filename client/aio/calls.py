"""The unary calls of the asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from streamcell.client import values
from streamcell.client.errors import InvalidInput
from streamcell.client.protocol import predict as predictions
from streamcell.client.protocol.health import check_request, is_serving
from streamcell.client.protocol.opening import OpenInputs
from streamcell.client.protocol.resume import Ticket
from streamcell.client.protocol.signature import OutputMode, SignatureCodec
from streamcell.proto import pb


class AsyncCalls:
    """One method for each unary call of the server; a subclass implements `_unary`."""

    _stub: Any
    _health: Any

    def __init__(self) -> None:
        self._codecs: dict[tuple[str, str], SignatureCodec] = {}

    async def _unary(self, method: Callable[..., Any], request: Any, timeout_s: float | None = None) -> Any:
        """Call `method` and return its reply. Raises a StreamCellError for any status but OK."""
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
            reply = await self._unary(self._stub.Predict, request, timeout_s)
            outputs = predictions.outputs(codec, reply, batched)
        except Exception:
            self._codecs.pop(key, None)  # the model may have changed: fetch the signature again next time
            raise
        self._codecs[key] = codec
        return outputs

    async def _signature(self, key: tuple[str, str], timeout_s: float | None) -> SignatureCodec:
        found = (await self._unary(self._stub.GetModel, predictions.get_model(*key), timeout_s)).model
        return SignatureCodec(found.inputs, found.outputs)

    async def models(self) -> list[values.Model]:
        """Every model that can be opened."""
        reply = await self._unary(self._stub.ListModels, pb.ListModelsRequest())
        return [values.model(each) for each in reply.models]

    async def model(self, name: str, version: str = "") -> values.Model:
        """One model; its newest version if none is named. Raises ModelNotFound."""
        return values.model(
            (await self._unary(self._stub.GetModel, predictions.get_model(name, version))).model
        )

    async def sessions(self, model: str = "") -> AsyncIterator[values.LiveSession]:
        """Yield the live sessions of all clients, oldest first; only those on `model` if it is given."""
        token = ""
        while True:
            request = pb.ListSessionsRequest(model=model, page_token=token)
            page = await self._unary(self._stub.ListSessions, request)
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
        reply = await self._unary(self._stub.CloseSession, request)
        index: int = reply.step_index
        return index

    async def ready(self, model: str = "", *, timeout_s: float | None = None) -> bool:
        """True if the server, or one of its models, takes sessions: the standard gRPC health check.

        Raises:
            NotFound: the server knows no such model.
            Unavailable, DeadlineExceeded: the server does not answer.
        """
        return is_serving(await self._unary(self._health, check_request(model), timeout_s))
