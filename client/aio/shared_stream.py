"""Sessions on shared streams of frames, in the asyncio client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

from streamcell.client.errors import (
    Cancelled,
    DeadlineExceeded,
    Explain,
    ServerFault,
    StreamCellError,
    Unavailable,
)
from streamcell.client.protocol.members import (
    OPEN_ELSEWHERE,
    SESSION_AHEAD_BYTES,
    Asked,
    FewSessions,
    Member,
    Row,
    RowReply,
    Wish,
)
from streamcell.client.protocol.session import SessionExchange
from streamcell.client.protocol.shared_stream import SharedExchange
from streamcell.proto import pb

from .grpc_stream import AsyncStream

Key: TypeAlias = tuple[str, str]
_OTHER_STREAMS = 3
# Unanswered frames: the server runs one while this client makes the next.
_FRAMES_AHEAD = 2


class AsyncSharedStreams:
    """The shared streams of one client: one for each model and version, while sessions are on it."""

    def __init__(self, start: Callable[[], Any], explain: Explain | None = None) -> None:
        """`start` starts a gRPC call of frames; `explain`: as for `from_rpc`."""
        self._start = start
        self._explain = explain
        self._few = FewSessions()
        self._not_carried: set[Key] = set()
        self._streams: dict[Key, AsyncSharedStream] = {}

    async def open(
        self, key: Key, exchange: SessionExchange, always: bool, timeout_s: float
    ) -> AsyncMemberStream | None:
        """What carries a new session of this model and version; None if it needs a stream of its own.

        Args:
            key: model and version.
            exchange: the session's; its messages go to the shared stream from now on.
            always: True to share even if few sessions are live, or if the model can generate.
            timeout_s: time limit of the first session, for the server's description of the model.

        Raises:
            DeadlineExceeded: the server did not answer in time.
        """
        if not always and (key in self._not_carried or self._few.take(key, exchange)):
            return None
        stream = AsyncMemberStream(self, key, exchange.output_mode, generates=not always)
        carried = await stream.is_carried(timeout_s)
        if carried is False and not always:
            self._not_carried.add(key)
        if not carried:
            return None
        exchange.share()
        return stream

    def join(self, key: Key, member: Member, left: AsyncSharedStream | None = None) -> AsyncSharedStream:
        """Put a new session on the stream for `key`, on another one than `left`."""
        stream = self._streams.get(key)
        if stream is None or stream is left:
            stream = self._streams[key] = AsyncSharedStream(
                key, AsyncStream(self._start(), self._explain), self._retire
            )
        stream.ask((member, Wish.JOIN))
        return stream

    def _retire(self, stream: AsyncSharedStream) -> None:
        """Put no more sessions on `stream`."""
        if self._streams.get(stream.key) is stream:
            del self._streams[stream.key]


class AsyncSharedStream:
    """One stream of frames, with a task that writes it and one that reads it.

    Attributes:
        key: model and version.
        described: set once the server has described the model, or the stream has ended.
    """

    def __init__(self, key: Key, call: AsyncStream, retire: Callable[[AsyncSharedStream], None]) -> None:
        self.key = key
        self.exchange = SharedExchange(*key, self.ask, _FRAMES_AHEAD)
        self.described = asyncio.Event()
        self._asked: deque[Asked] = deque()
        self._wake = asyncio.Event()
        self._call = call
        self._retire = retire
        self._writer = asyncio.create_task(self._write(), name="streamcell-frames-out")
        self._reader = asyncio.create_task(self._read(), name="streamcell-frames-in")

    def ask(self, asked: Asked) -> None:
        """Bring something to the writer."""
        self._asked.append(asked)
        self._wake.set()

    def _handle(self) -> None:
        while self._asked:
            self.exchange.handle(self._asked.popleft())

    async def _write(self) -> None:
        """Send frames; each is made when the call is free to send."""
        while True:
            self._handle()
            frame = self.exchange.next_frame()
            if frame is not None:
                await self._call.write(frame)
            elif self.exchange.unused:
                self._retire(self)
                if self.exchange.forsaken:
                    self._call.cancel()
                else:
                    await self._call.done_writing()
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _read(self) -> None:
        error: StreamCellError = Unavailable(
            "the server ended the stream before it answered", reason="STREAM_ENDED"
        )
        try:
            while (reply := await self._call.read()) is not None:
                self.exchange.deal(reply)
                self.described.set()
            error = await self._call.error() or error
        except ServerFault as fault:
            error = fault
        except asyncio.CancelledError:  # with the loop, or because the client was closed
            error = Cancelled("the client was closed")
            raise
        finally:
            self._end(error)

    def _end(self, error: StreamCellError) -> None:
        self._retire(self)
        self._writer.cancel()
        self._handle()  # sessions that have just joined
        self.exchange.end(error)
        self.described.set()
        self._call.cancel()


class _Inbox:
    """The replies of one session, and what waits for them. It does not refer to its session."""

    def __init__(self) -> None:
        self.replies: deque[Any] = deque()
        self._waiting: list[asyncio.Future[None]] = []

    def put(self, reply: Any) -> None:
        """Add a reply; None at the end."""
        self.replies.append(reply)
        self.wake()

    async def changed(self) -> None:
        """Wait for a reply, or for another one to be taken."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def wake(self) -> None:
        """Wake what waits."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def cancel(self) -> None:
        """Cancel what waits."""
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()


class AsyncMemberStream:
    """A session's part of a shared stream: the `AsyncSessionStream` of its `AsyncSession`."""

    def __init__(self, streams: AsyncSharedStreams, key: Key, mode: pb.OutputMode, generates: bool) -> None:
        self._streams = streams
        self._key = key
        self._mode = mode
        self._generates = generates
        self._inbox = _Inbox()
        self._written = 0  # bytes, as `Member.read`
        self._others = _OTHER_STREAMS
        self._open = False
        self._join(None)

    def _join(self, left: AsyncSharedStream | None) -> None:
        self._member = Member(self._mode, self._generates, self._inbox.put)
        self._stream = self._streams.join(self._key, self._member, left)

    async def is_carried(self, timeout_s: float) -> bool | None:
        """Whether the shared stream carries this session; None if it has ended. Waits for the model's description.

        Raises:
            DeadlineExceeded: the server did not answer in time.
        """
        described = self._stream.described
        try:
            if not described.is_set():
                await asyncio.wait_for(described.wait(), timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s:g} s: the session is over") from None
        finally:
            if not described.is_set():
                self.cancel()
        exchange = self._stream.exchange
        return None if exchange.opened is None else exchange.carries(self._member)

    def write_at_once(self, message: Any) -> bool:
        """Send a message; False if many replies were not read, so that it must wait. The opening has been sent."""
        if type(message) is not Row:
            return True
        member = self._member
        if self._written - member.read > SESSION_AHEAD_BYTES and not member.over:
            return False
        message.cost = self._stream.exchange.cost(message)
        self._written += message.cost
        self._stream.ask((member, message))
        return True

    async def write(self, message: Any) -> None:
        """Send a message; waits while many replies were not read."""
        while not self.write_at_once(message):
            await self._inbox.changed()

    async def done_writing(self) -> None:
        """Close the session once its messages have been sent."""
        self._stream.ask((self._member, Wish.FINISH))

    async def read(self) -> Any:
        """The next reply; None if the session has ended and all replies were read."""
        inbox = self._inbox
        while not inbox.replies:
            await inbox.changed()
        reply = inbox.replies.popleft()
        if type(reply) is RowReply:
            member = self._member
            member.read += reply.cost
            if member.stalled:
                self._stream.ask((member, Wish.LOOK))
            inbox.wake()
        elif reply is not None:
            self._open = True
        elif self._may_open_elsewhere():
            self._others -= 1
            self._join(self._stream)
            return await self.read()
        else:
            inbox.replies.append(None)
        return reply

    def _may_open_elsewhere(self) -> bool:
        error = self._member.error
        return not self._open and error is not None and error.reason in OPEN_ELSEWHERE and self._others > 0

    async def error(self) -> StreamCellError | None:
        """The error that the session ended with; None if it was closed."""
        return self._member.error

    def cancel(self) -> None:
        """End the session at once. What waits for it is cancelled, as in a gRPC call."""
        member = self._member
        if not member.over:
            self._inbox.cancel()
            member.end(Cancelled("the session was cancelled"))
        self._stream.ask((member, Wish.LEAVE))

    def __del__(self) -> None:
        if hasattr(self, "_stream") and not self._member.over:
            with suppress(RuntimeError):  # the loop is closed
                self.cancel()
