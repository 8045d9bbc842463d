"""The asyncio client: a connection to a server."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any

import grpc

from streamcell.client.channel import Metadata, Options
from streamcell.client.errors import ProtocolMisuse, from_rpc
from streamcell.client.protocol.health import CHECK
from streamcell.client.protocol.opening import OpenInputs
from streamcell.client.protocol.pool import PoolExchange
from streamcell.client.protocol.resume import Resumption, Ticket
from streamcell.client.protocol.session import SessionExchange
from streamcell.client.protocol.signature import OutputMode
from streamcell.proto import rpc

from .calls import AsyncCalls
from .grpc_stream import AsyncSessionStream, AsyncStream
from .pool import AsyncPool
from .session import AsyncSession
from .shared_stream import AsyncSharedStreams


class AsyncClient(AsyncCalls):
    """A connection to one server, for the tasks of one event loop; `connect_async` makes it.

    gRPC connects when it is first used, reconnects by itself, and sends all sessions over one connection.
    """

    def __init__(self, target: str, options: Options) -> None:
        super().__init__()
        self._options = options
        credentials, arguments = options.credentials(), options.arguments()
        self._channel: Any = (
            grpc.aio.insecure_channel(target, options=arguments)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options=arguments)
        )
        self._stub: Any = rpc.StreamCellStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._health: Any = self._channel.unary_unary(CHECK)
        self._shared = AsyncSharedStreams(partial(self._stub.StreamFrames, **options.of_call(math.inf)))
        self._closed = False
        self.target = target

    def session(
        self,
        model: str,
        version: str = "",
        *,
        output: OutputMode | None = None,
        inputs: OpenInputs = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        metadata: Metadata = (),
        resume: bool = False,
        resume_s: float = 30.0,
        multiplex: bool | None = None,
    ) -> AsyncSession:
        """A session on `model`, opened by `async with` or by its `open`; see `Client.session`."""
        self._check_open()
        exchange = SessionExchange(model, version, output, inputs, Resumption(resume_s) if resume else None)
        wait_s = self._options.wait_s(timeout_s)
        own = self._start(self._stub.Stream, lifetime_s, metadata)
        shared = self._options.multiplex if multiplex is None else multiplex
        if not shared or inputs or metadata or resume or math.isfinite(lifetime_s):
            return AsyncSession(own, exchange, wait_s)

        async def start() -> AsyncSessionStream:
            return await self._shared.open((model, version), exchange, bool(multiplex), wait_s) or await own()

        return AsyncSession(start, exchange, wait_s)

    def resume(
        self,
        ticket: Ticket,
        *,
        timeout_s: float | None = None,
        resume_s: float = 30.0,
        metadata: Metadata = (),
    ) -> AsyncSession:
        """The session of `ticket`, resumed by `async with` or by its `open`; see `Client.resume`."""
        self._check_open()
        start = self._start(self._stub.Stream, math.inf, metadata)
        exchange = SessionExchange("", "", None, None, Resumption(resume_s, ticket))
        return AsyncSession(start, exchange, self._options.wait_s(timeout_s))

    def pool(
        self,
        model: str,
        members: int,
        version: str = "",
        *,
        output: OutputMode | None = None,
        inputs: OpenInputs = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        metadata: Metadata = (),
    ) -> AsyncPool:
        """A pool of sessions on `model`, opened by `async with` or by its `open`; see `Client.pool`."""
        self._check_open()
        start = self._start(self._stub.StreamFrames, lifetime_s, metadata)
        exchange = PoolExchange(model, version, members, output, inputs)
        return AsyncPool(start, exchange, self._options.wait_s(timeout_s))

    def _start(
        self, method: Any, lifetime_s: float, metadata: Metadata
    ) -> Callable[[], Awaitable[AsyncSessionStream]]:
        async def start() -> AsyncSessionStream:
            return AsyncStream(method(**self._options.of_call(lifetime_s, metadata)))

        return start

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
            return await method(request, **self._options.of_call(self._options.wait_s(timeout_s)))
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
