"""Makes handlers whose calls run on the fast lane: on grpcio's serving thread, without a hop to its pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import grpc

from .calls import Handler, OnRequest, OpenStream, Options
from .completion_queue import beats, server_on_queue, when_read
from .fast_stream import StreamCall
from .fast_unary import UnaryCall
from .first_messages import FirstMessages
from .guard import Guard
from .in_flight import InFlight
from .new_calls import Begin, CallServer, take_new_calls
from .reading_turns import ReadingTurns
from .segments import SEGMENTS
from .threaded_lane import ThreadedLane, Workers

_OTHERS = 4


class FastLane:
    """Makes handlers whose calls run on the fast lane (a `calls.Lane`).

    Threads drive the calls of a server that has interceptors, or is not of this lane.
    """

    name = "fast"

    def __init__(self) -> None:
        # This lane's replies are on the socket once given; others' threads would send them after the release.
        self.in_flight = InFlight(segments=SEGMENTS)
        self._threaded = ThreadedLane(self.in_flight)
        self.first_messages: FirstMessages = self._threaded.first_messages
        self.guard: Guard = self._threaded.guard
        self.public_guard: Guard = self._threaded.public_guard
        self._turns = ReadingTurns()

    def server(self, options: Options = (), *, spin_s: float = 0.0) -> grpc.Server:
        """A server on a `ServingQueue`; its threads are for the calls that no lane drives."""
        workers = Workers(_OTHERS, thread_name_prefix="calls")
        server = server_on_queue(workers, options, spin_s=spin_s, kind=CallServer)
        take_new_calls(server)
        return server

    def beats(self, server: grpc.Server) -> int | None:
        """A number that changes while the server's thread comes by for events."""
        return beats(server)

    def when_read(self, server: grpc.Server, callback: Callable[[], None]) -> bool:
        """Call `callback` once the handlers have all data that has reached the server's sockets."""
        return when_read(server, callback)

    def take_turns(
        self, size: Callable[[str], int], most_bytes: Callable[[str], int | None] = lambda tenant: None
    ) -> None:
        """Have tenants take turns in being read: see `ReadingTurns.take`."""
        self._turns.take(size, most_bytes)

    def stream(self, open_: OpenStream, *, public: bool = False) -> Handler:
        """A bidirectional method."""
        guard = self.public_guard if public else self.guard
        begin = partial(
            StreamCall,
            open_=open_,
            first=self.first_messages,
            in_flight=self.in_flight,
            guard=guard,
            turns=self._turns,
        )
        return _beginning(self._threaded.stream(open_, public=public), begin)

    def unary(self, on_request: OnRequest, *, public: bool = False) -> Handler:
        """A unary method."""
        guard = self.public_guard if public else self.guard
        begin = partial(
            UnaryCall,
            on_request=on_request,
            first=self.first_messages,
            in_flight=self.in_flight,
            guard=guard,
            turns=self._turns,
        )
        return _beginning(self._threaded.unary(on_request, public=public), begin)


def _beginning(handler: Handler, begin: Begin) -> Handler:
    """`handler`, whose calls `begin` begins on a server of the lane."""
    handler.stream_stream.begin = begin  # type: ignore[union-attr]
    return handler
