"""Makes handlers whose calls run on the fast lane: on grpcio's serving thread, without a hop to its pool."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc

from .calls import Handler, OnRequest, OpenStream, Options
from .completion_queue import beats, server_on_queue, when_read
from .fast_stream import StreamCall
from .fast_unary import UnaryCall
from .first_messages import FirstMessages
from .in_flight import InFlight
from .threaded_lane import ThreadedLane

_OTHERS = 4


class _Inline(futures.ThreadPoolExecutor):
    """Runs a handler on grpcio's serving thread: a lane's handler only starts operations, so it needs no hop."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class FastLane:
    """Makes handlers whose calls run on the fast lane (a `calls.Lane`).

    An interceptor that wraps a behaviour, as tracing does, hides that it is the lane's: threads drive such calls.
    """

    name = "fast"

    def __init__(self) -> None:
        self._inline = _Inline(1)
        self.in_flight = InFlight()
        self._threaded = ThreadedLane(self.in_flight)
        self.first_messages: FirstMessages = self._threaded.first_messages

    def server(self, options: Options = (), *, spin_s: float = 0.0) -> grpc.Server:
        """A server on a `ServingQueue`; its threads are for the calls that no lane drives."""
        return server_on_queue(
            futures.ThreadPoolExecutor(_OTHERS, thread_name_prefix="calls"), options, spin_s=spin_s
        )

    def beats(self, server: grpc.Server) -> int | None:
        """A number that changes while the server's thread comes by for events."""
        return beats(server)

    def when_read(self, server: grpc.Server, callback: Callable[[], None]) -> bool:
        """Call `callback` once the handlers have all data that has reached the server's sockets."""
        return when_read(server, callback)

    def stream(self, open_: OpenStream) -> Handler:
        """A bidirectional method."""
        wrapped: Any = self._threaded.stream(open_).stream_stream

        def behaviour(requests: Any, context: Any, finish: Callable[[None], None] | None = None) -> Any:
            if finish is None:
                return wrapped(requests, context)
            StreamCall(context, finish, open_, self.first_messages, self.in_flight)
            return None

        return self._handler(behaviour)

    def unary(self, on_request: OnRequest) -> Handler:
        """A unary method."""
        wrapped: Any = self._threaded.unary(on_request).stream_stream

        def behaviour(requests: Any, context: Any, finish: Callable[[None], None] | None = None) -> Any:
            if finish is None:
                return wrapped(requests, context)
            UnaryCall(context, finish, on_request, self.first_messages, self.in_flight)
            return None

        return self._handler(behaviour)

    def _handler(self, behaviour: Any) -> Handler:
        behaviour.experimental_non_blocking = True
        behaviour.experimental_thread_pool = self._inline
        return grpc.stream_stream_rpc_method_handler(behaviour)
