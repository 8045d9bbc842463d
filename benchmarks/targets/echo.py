"""Yardstick servers that echo messages: `python -m streamcell.benchmarks.targets.echo aio|lane`.

`aio` is what a plain Python gRPC server costs with no model in it; `lane` is this project's transport alone.
The port is the first line of standard output.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc

from streamcell.benchmarks.load.dialects import ECHO_STREAM

if TYPE_CHECKING:
    from streamcell.service.transport.calls import Call, UnaryCall

_SERVICE, _, _ = ECHO_STREAM.strip("/").partition("/")


class Echo:
    """A stream's handler (a `calls.StreamHandler`) that answers each message with itself."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def on_message(self, data: bytes) -> bool:
        """Answer."""
        self.call.reply(data)
        return True

    def on_half_close(self) -> None:
        """End the call."""
        self.call.end()

    def on_end(self, cancelled: bool) -> None:
        """Nothing is left to do."""


async def _aio() -> None:
    async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for message in requests:
            yield message

    async def unary(message: bytes, context: Any) -> bytes:
        return message

    server = grpc.aio.server()
    methods: dict[str, Any] = {
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _say(port)
    await server.wait_for_termination()


def _lane() -> None:
    from streamcell.service.transport.lane_choice import choose_lane

    def unary(call: UnaryCall, data: bytes) -> None:
        call.answer(data)

    lane = choose_lane("fast")
    server = lane.server()
    methods = {"Stream": lane.stream(Echo), "Unary": lane.unary(unary)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _say(port)
    signal.pause()


def _say(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until a signal ends the process."""
    kinds: dict[str, Callable[[], None]] = {"aio": lambda: asyncio.run(_aio()), "lane": _lane}
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:
        sys.exit(f"expected one of {', '.join(kinds)}; got {sys.argv[1:]}")
    kinds[sys.argv[1]]()


if __name__ == "__main__":
    main()
