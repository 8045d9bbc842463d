"""Handlers whose calls run on the fast lane: begun on grpcio's serving thread, without a hop to its pool."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc

from .calls import Handler, OnRequest, OpenStream
from .lane import StreamCall, UnaryCall


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
    """Makes handlers whose calls run on the fast lane (a `calls.Lane`)."""

    name = "fast"
    # grpcio's pool runs the other calls only.
    workers = 4

    def __init__(self) -> None:
        self._inline = _Inline(1)

    def stream(self, open_: OpenStream) -> Handler:
        """A bidirectional method."""

        def behaviour(requests: Any, context: Any, finish: Callable[[None], None]) -> None:
            StreamCall(context, finish, open_)

        return self._handler(behaviour)

    def unary(self, on_request: OnRequest) -> Handler:
        """A unary method."""

        def behaviour(requests: Any, context: Any, finish: Callable[[None], None]) -> None:
            UnaryCall(context, finish, on_request)

        return self._handler(behaviour)

    def _handler(self, behaviour: Any) -> Handler:
        behaviour.experimental_non_blocking = True
        behaviour.experimental_thread_pool = self._inline
        return grpc.stream_stream_rpc_method_handler(behaviour)
