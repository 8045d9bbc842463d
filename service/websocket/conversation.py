"""One WebSocket and its call: passes messages between them, no faster than the receiver takes them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from streamcell.service.errors import ServiceError
from streamcell.service.metrics.websocket_metrics import WebSocketFigures

from .frames import Codec, Failure, of_error, of_status

# A call that fails closes the WebSocket with 4000 and its gRPC status code.
CLOSE_CODE = 4000
_CLOSE_REASON_BYTES = 123


class Conversation:
    """Carries one session. At most one frame a direction is between the two."""

    def __init__(self, socket: ServerConnection, call: Any, codec: Codec, figures: WebSocketFigures) -> None:
        """`call`: a Stream call of `grpc.aio` whose messages are bytes; `figures`: where messages are counted."""
        self._socket, self._call, self._codec, self._figures = socket, call, codec, figures
        self._fault: ServiceError | None = None
        self._heard = self._said = 0
        self._forwarding = self._saying = False

    async def run(self, ping_s: float, answer_s: float) -> None:
        """Carry messages until either side ends, and close both; ping after `ping_s` seconds, wait `answer_s`."""
        others = [
            asyncio.create_task(self._requests()),
            asyncio.create_task(self._watch(ping_s, answer_s)),
        ]
        try:
            failure = await self._replies()
            if failure is None:
                await self._socket.close()
            else:
                frame = failure.frame()
                self._figures.sent(frame)
                await self._socket.send(frame)
                reason = failure.reason.encode()[:_CLOSE_REASON_BYTES].decode(errors="ignore")
                await self._socket.close(CLOSE_CODE + failure.code, reason)
        except ConnectionClosed:
            pass
        finally:
            self._call.cancel()
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _requests(self) -> None:
        try:
            async for frame in self._socket:
                self._heard += 1
                self._figures.received(frame)
                if frame == "":  # the last one
                    await self._call.done_writing()
                    await self._socket.wait_closed()
                    break
                message = self._codec.request(frame)
                self._forwarding = True
                try:
                    await self._call.write(message)
                finally:
                    self._forwarding = False
        except ServiceError as error:
            self._fault = error
            self._call.cancel()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the call has ended: `_replies` says how
        except ConnectionClosed:  # not as it should
            self._call.cancel()
        else:  # closed by the client
            self._call.cancel()

    async def _replies(self) -> Failure | None:
        """Pass replies on until the call ends; None: as it should."""
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                frame = self._codec.reply(message)
                self._saying = True
                self._figures.sent(frame)
                await self._socket.send(frame)
                self._saying = False
                self._said += 1
        except grpc.RpcError:
            pass
        except asyncio.CancelledError:
            # `read` raises it too, if the call was cancelled.
            if not self._call.cancelled():
                raise
        if self._fault is not None:
            return of_error(self._fault)
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return None
        return of_status(code, await self._call.details(), await self._call.trailing_metadata() or ())

    async def _watch(self, ping_s: float, answer_s: float) -> None:
        """Cut the connection of a peer that is gone, or accepts no reply for that long."""
        while True:
            await asyncio.sleep(ping_s)
            heard, said, saying = self._heard, self._said, self._saying
            with suppress(TimeoutError, ConnectionClosed):
                async with asyncio.timeout(answer_s):
                    await (await self._socket.ping())
                if not saying or said != self._said:
                    continue
            stuck = saying and said == self._said
            # While a message waits for the model, an answer to the ping may lie behind others that are not read yet.
            if stuck or (heard == self._heard and not self._forwarding):
                self._socket.transport.abort()
                return
