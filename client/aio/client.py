"""The asyncio client: a connection to a server, and the calls that are not a session's."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import grpc

from streamcell.client import values as info
from streamcell.client.channel import Metadata, Options
from streamcell.client.errors import InvalidInput, ProtocolMisuse, from_rpc
from streamcell.client.protocol import predict as predictions
from streamcell.client.protocol.health import CHECK, ask, is_serving
from streamcell.client.protocol.pool import PoolExchange
from streamcell.client.protocol.session import SessionExchange
from streamcell.client.protocol.signature import OutputMode, SignatureCodec
from streamcell.proto import pb, rpc

from .pool import AsyncPool
from .session import AsyncSession


class AsyncClient:
    """A connection to one server, on asyncio; `connect_async` makes it. For the tasks of one event loop.

    gRPC connects when it is first used, reconnects by itself, and sends all sessions over one connection.
    """

    def __init__(self, target: str, options: Options) -> None:
        self._options = options
        credentials, arguments = options.credentials(), options.arguments()
        self._channel: Any = (
            grpc.aio.insecure_channel(target, options=arguments)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options=arguments)
        )
        self._stub: Any = rpc.StreamCellStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._health: Any = self._channel.unary_unary(CHECK)
        self._codecs: dict[tuple[str, str], SignatureCodec] = {}
        self._closed = False
        self.target = target

    def session(
        self,
        model: str,
        version: str = "",
        *,
        output: OutputMode | None = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        metadata: Metadata = (),
    ) -> AsyncSession:
        """A session on `model`, opened by `async with` or by its `open`; see `Client.session`."""
        self._check_open()

        start = self._start(self._stub.Stream, lifetime_s, metadata)
        return AsyncSession(start, SessionExchange(model, version, output), self._limit_s(timeout_s))

    def pool(
        self,
        model: str,
        members: int,
        version: str = "",
        *,
        output: OutputMode | None = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        metadata: Metadata = (),
    ) -> AsyncPool:
        """A pool of sessions on `model`, opened by `async with` or by its `open`; see `Client.pool`."""
        self._check_open()
        start = self._start(self._stub.StreamFrames, lifetime_s, metadata)
        return AsyncPool(start, PoolExchange(model, version, members, output), self._limit_s(timeout_s))

    def _start(self, method: Any, lifetime_s: float, metadata: Metadata) -> Callable[[], Any]:
        def start() -> Any:
            return method(
                timeout=lifetime_s if math.isfinite(lifetime_s) else None,
                metadata=(*self._options.metadata, *metadata),
                wait_for_ready=self._options.wait_for_ready,
            )

        return start

    def _limit_s(self, timeout_s: float | None) -> float:
        limit_s = self._options.limit_s(timeout_s)
        return math.inf if limit_s is None else limit_s

    async def predict(
        self,
        model: str,
        x: Any,
        *,
        version: str = "",
        output: OutputMode | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Run whole sequences from the initial state; see `Client.predict`."""
        key = (model, version)
        codec = known = self._codecs.get(key)
        try:
            if codec is None:
                codec = await self._signature(key, timeout_s)
            try:
                request, batched = predictions.request(codec, model, version, x, output)
            except InvalidInput:
                if known is None:
                    raise
                codec = await self._signature(key, timeout_s)  # the model may have changed
                request, batched = predictions.request(codec, model, version, x, output)
            reply = await self._unary(self._stub.Predict, request, timeout_s)
            outputs = predictions.outputs(codec, reply, batched)
        except Exception:
            self._codecs.pop(key, None)  # as above: look again next time
            raise
        self._codecs[key] = codec
        return outputs

    async def _signature(self, key: tuple[str, str], timeout_s: float | None) -> SignatureCodec:
        found = (await self._unary(self._stub.GetModel, predictions.get_model(*key), timeout_s)).model
        return SignatureCodec(found.inputs, found.outputs)

    async def models(self) -> list[info.Model]:
        """Every model that can be opened."""
        reply = await self._unary(self._stub.ListModels, pb.ListModelsRequest())
        return [info.model(each) for each in reply.models]

    async def model(self, name: str, version: str = "") -> info.Model:
        """One model, its newest version unless one is named. Raises ModelNotFound."""
        return info.model(
            (await self._unary(self._stub.GetModel, predictions.get_model(name, version))).model
        )

    async def sessions(self, model: str = "") -> AsyncIterator[info.LiveSession]:
        """The live sessions of all clients, oldest first; only those on `model` where it is given."""
        token = ""
        while True:
            request = pb.ListSessionsRequest(model=model, page_token=token)
            page = await self._unary(self._stub.ListSessions, request)
            for each in page.sessions:
                yield info.live_session(each)
            token = page.next_page_token
            if not token:
                return

    async def close_session(self, session_id: str) -> int:
        """End any client's session and return the timesteps it had applied. Raises SessionNotFound."""
        reply = await self._unary(self._stub.CloseSession, pb.CloseSessionRequest(session_id=session_id))
        index: int = reply.step_index
        return index

    async def ready(self, model: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the server, or one of its models, takes sessions; see `Client.ready`."""
        return is_serving(await self._unary(self._health, ask(model), timeout_s))

    async def close(self) -> None:
        """Disconnect. Sessions that are still open end as cancelled."""
        if not self._closed:
            self._closed = True
            await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ProtocolMisuse(f"the client of {self.target} is closed", reason="CLIENT_CLOSED")

    async def _unary(self, method: Callable[..., Any], request: Any, timeout_s: float | None = None) -> Any:
        self._check_open()
        try:
            return await method(
                request,
                timeout=self._options.limit_s(timeout_s),
                metadata=tuple(self._options.metadata),
                wait_for_ready=self._options.wait_for_ready,
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
