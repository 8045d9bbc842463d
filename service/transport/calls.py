"""The interface between lanes and the code that answers calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import grpc

from streamcell.service.access.identity import Identity

if TYPE_CHECKING:
    from .first_messages import FirstMessages
    from .guard import Guard
from .in_flight import InFlight

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
Trailing = Metadata
Options: TypeAlias = Sequence[tuple[str, Any]]

# The error text for a call that a handler's bug has ended; the log has the details.
FAULT = "internal error"


class Call(Protocol):
    """One running stream. Every method may be called from any thread; none blocks."""

    peer: str
    caller: Identity  # who calls; established before the call has a handler
    # Why a call ended that its client did not end: "cancelled" or "frontend_lost".
    gone: str
    # True if a front end has brought its first message to an earlier engine process, which has died.
    again: bool

    def metadata(self) -> Metadata:
        """The metadata that the client sent. Call it when the call begins."""

    def hand_to(self, handler: StreamHandler) -> None:
        """Let another handler take the later messages and the end. Call within `on_message`."""

    def reply(self, data: bytes, *, last: bool = True) -> None:
        """Send one message, in order. Does nothing once the call has ended.

        `last`: no other reply to the same message follows. Once every message has its last reply, another one may have
        to wait until the next message arrives, unless `read_on` was called.
        """

    def skip(self) -> None:
        """The current message gets no reply. Call within `on_message`."""

    def read_on(self) -> None:
        """Allow reading the next message before the current one is fully answered. Call within `on_message`."""

    def has_room(self, wake: Callable[[], None]) -> bool:
        """True if a handler that replies unasked may continue.

        If not, because the client does not read, `wake` is called once it may: once, from any thread, perhaps
        before this returns. Only the latest `wake` is kept. Never False once the call has ended.
        """

    def resume(self) -> None:
        """Resume reading, after `on_message` returned False. May be called before it has returned."""

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """Call `callback` on the thread that brings messages, once those that have arrived are delivered.

        Call within `on_message`. False, and it is not called, if each call has its own thread.
        """

    def end(
        self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", trailing: Trailing = ()
    ) -> None:
        """End the call after the replies already given. Later ends are ignored."""


class StreamHandler(Protocol):
    """Answers one stream, in order, from any thread: one reply to each message unless it says otherwise."""

    def on_message(self, data: bytes) -> bool:
        """Take one message; False stops the reading until `Call.resume`.

        True allows reading the next message, perhaps only with the reply: no reply may wait for a later message.
        """

    def on_half_close(self) -> None:
        """The client sends no more messages; end the call once its replies are given.

        A cancelled call can look half-closed at first; `on_end` says which it is.
        """

    def on_end(self, cancelled: bool) -> None:
        """The call is over; called exactly once. `cancelled`: by the client, its disconnection or its deadline."""


class UnaryCall(Protocol):
    """One unary call. Call `answer` or `fail` once, from any thread; later calls are ignored."""

    peer: str
    caller: Identity  # who calls; established before the request is read

    def metadata(self) -> Metadata:
        """The metadata that the client sent."""

    def answer(self, data: bytes) -> None:
        """Send the response with status OK."""

    def fail(self, code: grpc.StatusCode, details: str, trailing: Trailing = ()) -> None:
        """End the call with an error."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` if the call ends before it is answered: cancelled, past its deadline, disconnected.

        At once if it has ended; never after an answer.
        """

    def run_after_arrivals(self, callback: Callable[[], None]) -> bool:
        """Call `callback` on the thread that brings messages, once those that have arrived are delivered.

        Call within the handler. False, and it is not called, if each call has its own thread.
        """


OpenStream = Callable[[Call], StreamHandler]
OnRequest = Callable[[UnaryCall, bytes], None]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Lane(Protocol):
    """Makes gRPC method handlers that drive calls."""

    name: str

    def stream(self, open_: OpenStream, *, public: bool = False) -> Handler:
        """A bidirectional method; `open_` is called for each call as it begins. `public`: for callers unknown, too."""

    def unary(self, on_request: OnRequest, *, public: bool = False) -> Handler:
        """A unary method; `on_request` gets each request's bytes and must not block."""


class ServerLane(Lane, Protocol):
    """A lane whose calls come from a gRPC server in this process."""

    first_messages: FirstMessages  # its calls that have sent nothing yet
    in_flight: InFlight  # the calls of its servers, and their bytes in memory
    guard: Guard  # establishes who calls
    public_guard: Guard  # the same for methods that callers who are not known may call, too

    def server(self, options: Options = (), *, spin_s: float = 0.0) -> grpc.Server:
        """A server for its handlers. `spin_s`: how long its thread may poll for messages before it blocks."""

    def beats(self, server: grpc.Server) -> int | None:
        """A number that changes while the server's thread fetches events, at least once a second.

        None if this grpcio does not let it be told.
        """

    def take_turns(
        self, size: Callable[[str], int], most_bytes: Callable[[str], int | None] = lambda tenant: None
    ) -> None:
        """Have tenants take turns in being read. Call before the server starts.

        Args:
            size: messages of a tenant's turn.
            most_bytes: that a tenant may have unanswered; None: any number.
        """

    def when_read(self, server: grpc.Server, callback: Callable[[], None]) -> bool:
        """Call `callback` once the handlers have all data that has reached the sockets of `server`, one of its own.

        False, and it is not called, if the lane cannot tell.
        """
