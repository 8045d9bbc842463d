"""The asyncio client: a connection to a server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import grpc

from streamcell.client.channel import Metadata, Options
from streamcell.client.errors import ProtocolMisuse, from_rpc
from streamcell.client.lines import Line, Lines
from streamcell.client.protocol.durability import Durability
from streamcell.client.protocol.frame_resume import FrameResumption
from streamcell.client.protocol.opening import OpenInputs
from streamcell.client.protocol.pool import PoolExchange
from streamcell.client.protocol.resume import RETAIN_BYTES, Resumption
from streamcell.client.protocol.retries import Retries
from streamcell.client.protocol.session import SessionExchange
from streamcell.client.protocol.signature import OutputMode
from streamcell.client.protocol.ticket import Ticket
from streamcell.client.protocol.way import Way
from streamcell.proto import rpc

from .calls import AsyncCalls
from .grpc_stream import AsyncSessionStream, AsyncStream
from .pool import AsyncPool
from .session import AsyncSession
from .shared_stream import AsyncSharedStreams


class AsyncClient(AsyncCalls):
    """A connection to one server, for the tasks of one event loop; `connect_async` makes it.

    gRPC connects when it is first used, reconnects by itself, and sends all sessions over one connection.

    Attributes:
        target: the server's address, with its port; several have commas between.
    """

    def __init__(self, target: str, options: Options) -> None:
        super().__init__()
        self._options = options
        self._lines = Lines(target, options, grpc.aio, rpc.StreamCellStub)
        self.target = self._lines.target
        self._shared = AsyncSharedStreams(self._start_frames, self._lines.now().explain)
        self._closed = False

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
        durability: Durability | None = None,
        retain_bytes: int = RETAIN_BYTES,
        multiplex: bool | None = None,
    ) -> AsyncSession:
        """A session on `model`, opened by `async with` or by its `open`; see `Client.session`."""
        self._check_open()
        resumption = Resumption(resume_s, retain_bytes=retain_bytes) if resume else None
        exchange = SessionExchange(model, version, output, inputs, resumption, durability=durability)
        exchange.others = self._lines.others()
        wait_s = self._options.wait_s(timeout_s)
        own = self._start("Stream", lifetime_s, metadata)
        shared = self._options.multiplex if multiplex is None else multiplex
        if not shared or inputs or metadata or resume or math.isfinite(lifetime_s):
            return AsyncSession(own, exchange, wait_s)

        async def start(way: Way | None) -> AsyncSessionStream:
            shared = await self._shared.open((model, version), exchange, bool(multiplex), wait_s)
            return shared or await own(way)

        return AsyncSession(start, exchange, wait_s)

    def resume(
        self,
        ticket: Ticket,
        *,
        timeout_s: float | None = None,
        resume_s: float = 30.0,
        retain_bytes: int = RETAIN_BYTES,
        metadata: Metadata = (),
    ) -> AsyncSession:
        """The session of `ticket`, resumed by `async with` or by its `open`; see `Client.resume`."""
        self._check_open()
        start = self._start("Stream", math.inf, metadata)
        exchange = SessionExchange(
            "", "", None, None, Resumption(resume_s, ticket, retain_bytes=retain_bytes)
        )
        return AsyncSession(start, exchange, self._options.wait_s(timeout_s))

    def restore(
        self,
        snapshot: bytes,
        model: str = "",
        version: str = "",
        *,
        output: OutputMode | None = None,
        timeout_s: float | None = None,
        resume_s: float = 30.0,
        durability: Durability | None = None,
        retain_bytes: int = RETAIN_BYTES,
        metadata: Metadata = (),
    ) -> AsyncSession:
        """A session that begins in the state of `snapshot`, opened by `async with` or `open`; see `Client.restore`."""
        self._check_open()
        start = self._start("Stream", math.inf, metadata)
        resumption = Resumption(resume_s, retain_bytes=retain_bytes)
        exchange = SessionExchange(model, version, output, None, resumption, snapshot, durability)
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
        resume: bool = False,
        resume_s: float = 30.0,
    ) -> AsyncPool:
        """A pool of sessions on `model`, opened by `async with` or by its `open`; see `Client.pool`."""
        self._check_open()
        start = self._start("StreamFrames", lifetime_s, metadata)
        resumption = FrameResumption(resume_s) if resume else None
        exchange = PoolExchange(model, version, members, output, inputs, resumption=resumption)
        exchange.others = self._lines.others()
        return AsyncPool(start, exchange, self._options.wait_s(timeout_s))

    def restore_pool(
        self,
        snapshot: bytes,
        *,
        output: OutputMode | None = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        metadata: Metadata = (),
    ) -> AsyncPool:
        """A pool of the members of `snapshot`, opened by `async with` or by its `open`; see `Client.restore_pool`."""
        self._check_open()
        start = self._start("StreamFrames", lifetime_s, metadata)
        exchange = PoolExchange("", "", 0, output, snapshot=snapshot)
        exchange.others = self._lines.others()
        return AsyncPool(start, exchange, self._options.wait_s(timeout_s))

    def _start(
        self, method: str, lifetime_s: float, metadata: Metadata
    ) -> Callable[[Way | None], Awaitable[AsyncSessionStream]]:
        used: list[Line] = []

        async def start(way: Way | None) -> AsyncSessionStream:
            line = self._line(way, used)
            said = metadata if way is None else (*metadata, *way.metadata())
            call = getattr(line.stub, method)(**self._lines.of_call(lifetime_s, said))
            stream = AsyncStream(call, line.explain)
            line.streams.add(stream)
            for channel in self._lines.dropped():
                await channel.close()
            return stream

        return start

    def _line(self, way: Way | None, used: list[Line]) -> Line:
        """The connection for a session's next stream; `used`: that of its last one, if it cannot be resumed."""
        if way is not None:
            return self._lines.of(way)
        if used:  # it was not opened there
            self._lines.skip(used.pop())
        used.append(self._lines.now())
        return used[0]

    def _start_frames(self) -> Any:
        line = self._lines.now()
        return line.stub.StreamFrames(**self._lines.of_call(math.inf))

    async def close(self) -> None:
        """Disconnect. Sessions that are still open end as cancelled."""
        if not self._closed:
            self._closed = True
            for channel in self._lines.every():
                await channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ProtocolMisuse(f"the client of {self.target} is closed", reason="CLIENT_CLOSED")

    async def _unary(
        self, method: str, request: Any, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Any:
        self._check_open()
        wait_s = self._options.wait_s(timeout_s)
        retries = Retries(wait_s, others=self._lines.others(method))
        while True:
            line = self._lines.now()
            try:
                return await line.call(method)(request, **self._lines.of_call(wait_s, metadata))
            except grpc.aio.AioRpcError as error:
                refused = from_rpc(error, line.explain)
            if (pause_s := retries.pause_s(refused)) is None:
                raise refused
            if not pause_s:
                self._lines.skip(line)
            await asyncio.sleep(pause_s)
            wait_s = retries.left_s
