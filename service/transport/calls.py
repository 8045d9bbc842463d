"""What a lane gives to the code that answers calls, whichever lane drives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import grpc

if TYPE_CHECKING:
    from .first_messages import FirstMessages
from .in_flight import InFlight

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Trailing = Metadata
Options: TypeAlias = Sequence[tuple[str, Any]]

# What the client of a call that a handler's bug has ended is told; the log has the rest.
FAULT = "internal error"


class Call(Protocol):
    """One running stream. Every method may be called from any thread; none blocks."""

    peer: str
    # Why a call is over that its client has not ended: "cancelled", or "frontend_lost".
    gone: str

    def metadata(self) -> Metadata:
        """What the client sent before its messages. For when the call begins."""

    def reply(self, data: bytes, *, last: bool = True) -> None:
        """Send one message after those before it. Nothing happens once the call has ended.

        `last`: no other reply to the same message follows.
        """

    def skip(self) -> None:
        """The message at hand gets no reply. Within `on_message`."""

    def read_on(self) -> None:
        """Let messages come before the replies to the one at hand are out. Within `on_message`."""

    def has_room(self, wake: Callable[[], None]) -> bool:
        """Whether a handler that replies unasked may go on.

        Where not, for the client does not read, `wake` is called once it may: once, from whatever thread, perhaps
        before this returns. The latest `wake` stands. Never False once the call has ended.
        """

    def resume(self) -> None:
        """Read on, after `on_message` has returned False. May come before it has returned."""

    def soon(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called on the thread that brings messages, once those that have arrived are delivered.

        Within `on_message`. False, and it is not called, where messages have a thread a call.
        """

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Trailing = ()
    ) -> None:
        """End the call after the replies already given. The first end stands."""


class StreamHandler(Protocol):
    """Answers one stream, in order, from whatever thread: every message by one reply unless it says otherwise."""

    def on_message(self, data: bytes) -> bool:
        """Take one message; False stops the reading until `Call.resume`.

        True allows the next to be read, perhaps only with the reply: no reply may wait for a later message.
        """

    def on_half_close(self) -> None:
        """The client sends no more; end the call once its replies are given.

        A cancelled call can look half-closed at first: `on_end` tells.
        """

    def on_end(self, cancelled: bool) -> None:
        """The call is over; comes exactly once. `cancelled`: by the client, its disconnection or its deadline."""


class UnaryCall(Protocol):
    """One unary call. `answer` or `fail` once, from any thread; what comes after that is ignored."""

    peer: str

    def answer(self, data: bytes) -> None:
        """Send the response with status OK."""

    def fail(self, code: grpc.StatusCode, details: str, trailing: Trailing = ()) -> None:
        """End the call with an error."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have `callback` called if the call ends before it is answered: cancelled, out of time, disconnected.

        At once where it has; never after an answer.
        """

    def soon(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called on the thread that brings messages, once those that have arrived are delivered.

        Within the handler's own call. False, and it is not called, where messages have a thread a call.
        """


OpenStream = Callable[[Call], StreamHandler]
OnRequest = Callable[[UnaryCall, bytes], None]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Lane(Protocol):
    """Makes gRPC method handlers that drive calls."""

    name: str

    def stream(self, open_: OpenStream) -> Handler:
        """A bidirectional method; `open_` is called for each call as it begins."""

    def unary(self, on_request: OnRequest) -> Handler:
        """A unary method; `on_request` gets each request's bytes and must not block."""


class ServerLane(Lane, Protocol):
    """A lane whose calls come from a gRPC server in this process."""

    first_messages: FirstMessages  # its calls that have sent nothing yet
    in_flight: InFlight  # the calls of its servers, and what of them is in memory

    def server(self, options: Options = (), *, spin_s: float = 0.0) -> grpc.Server:
        """A server for its handlers. `spin_s`: how long its thread may look for messages before it sleeps."""

    def beats(self, server: grpc.Server) -> int | None:
        """A number that changes while the server's thread comes by for events, once a second at least.

        None if this grpcio does not let it be told.
        """

    def when_read(self, server: grpc.Server, callback: Callable[[], None]) -> bool:
        """Have `callback` called once what has come to the sockets of `server`, one of its own, is with its handlers.

        False, and it is not called, where the lane cannot tell.
        """
