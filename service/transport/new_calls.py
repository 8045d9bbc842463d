"""Takes new calls from grpc's core for the fast lane, without grpcio's own set-up of a call.

grpcio makes for each call a state, a context, two conditions, an iterator and a future, and looks its method up among
all services: 90 Python calls, before a message is read. The core tells a server of a call by an event whose tag the
server has chosen. Here that tag is a function, which begins the calls of the lane's methods itself; all others get
grpcio's set-up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from grpc import _server
from grpc._cython import cygrpc

from .completion_queue import AGAIN

# Begins a call: (the core's call, its metadata) → what stands for it until it is over.
Begin = Callable[[Any, Any], object]


class CallServer(cygrpc.Server):  # type: ignore[misc]  # grpcio has no types for it
    """The core's server. Once it has `calls`, these are told of new calls in grpcio's place."""

    calls: NewCalls | None = None

    def request_call(self, call_queue: Any, server_queue: Any, tag: Any) -> None:
        """Ask the core for one more call."""
        super().request_call(call_queue, server_queue, self.calls or tag)

    def destroy(self) -> None:
        """Free the core's server, which has stopped."""
        self.calls = None  # they refer to it: breaks the cycle
        super().destroy()


class NewCalls:
    """The tag of a server's requests for calls."""

    def __init__(self, state: Any) -> None:
        """`state`: grpcio's, of the server."""
        self._state = state
        self._methods: dict[bytes, Begin] = {}

    def __call__(self, event: Any) -> Any:
        """Begin the call that has come, and ask for the next one. On the serving thread, without a lock."""
        state = self._state
        begun: object = None
        if event.success:
            method = event.call_details.method
            begin = self._methods.get(method) or self._find(method)
            if begin is not None:
                begun = begin(event.call, event.invocation_metadata)
        with state.lock:
            if begun is not None:
                state.rpc_states.add(begun)
            elif event.success:
                self._leave_to_grpcio(event)
            if state.stage is _server._ServerStage.STARTED:
                state.server.request_call(state.completion_queue, state.completion_queue, None)
                return AGAIN
            state.due.discard(_server._REQUEST_CALL_TAG)
            state.rpc_states.add(self)
        # The server stops: grpcio removes what is returned here, and sees whether that was the last.
        return self, ()

    def _find(self, method: bytes) -> Begin | None:
        """How a call of `method` begins; None if the lane does not drive it."""
        details = _server._HandlerCallDetails(method.decode("latin-1"), ())
        for handlers in self._state.generic_handlers:
            handler = handlers.service(details)
            if handler is not None:
                begin: Begin | None = getattr(handler.stream_stream, "begin", None)
                if begin is not None:
                    self._methods[method] = begin
                return begin
        return None

    def _leave_to_grpcio(self, event: Any) -> None:
        state = self._state
        method = _server._GenericMethod(state.generic_handlers)
        begun, _ = _server._handle_call(event, method, None, state.thread_pool, False)
        if begun is not None:
            state.rpc_states.add(begun)


def take_new_calls(server: grpc.Server) -> None:
    """Have the lane's methods begin their calls themselves. Call before the server starts.

    Interceptors see every call, so a server that has any keeps grpcio's set-up.

    Raises:
        TypeError: this grpcio builds its servers differently.
    """
    state = server._state  # type: ignore[attr-defined]
    if not isinstance(state.server, CallServer):
        raise TypeError(f"expected grpcio's server to be on a CallServer, got {type(state.server).__name__}")
    if state.interceptor_pipeline is None:
        state.server.calls = NewCalls(state)
