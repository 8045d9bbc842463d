"""One blocking gRPC stream."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc

from streamcell.client.errors import Explain, StreamCellError, from_rpc

Requests = Iterator[Any]


class SessionStream(Protocol):
    """What carries a session's messages and replies: a gRPC stream of its own, or a part of a shared one."""

    def write(self, message: Any) -> None:
        """Send a message, without waiting. Does nothing if the stream has ended: `read` reports that."""

    def done_writing(self) -> None:
        """Tell the server that no further message follows."""

    def read(self) -> Any:
        """Wait for the next reply; None if the stream has ended and all replies were read."""

    def error(self) -> StreamCellError | None:
        """The error that it ended with, once `read` has returned None; None if there was none."""

    def cancel(self) -> None:
        """End it at once. Any thread may call it, also while objects are being destroyed."""


class GrpcStream:
    """A session's own gRPC stream."""

    def __init__(self, start: Callable[[Requests], Any], explain: Explain | None = None) -> None:
        """`start` starts the gRPC call for an iterator of requests; `explain`: as for `from_rpc`."""
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.write: Callable[[Any], None] = requests.put
        self._call = start(iter(requests.get, None))
        self._explain = explain
        self._error: StreamCellError | None = None

    def done_writing(self) -> None:
        """Tell the server that no further message follows; ends gRPC's thread that consumes the requests."""
        self.write(None)

    def read(self) -> Any:
        """Wait for the next reply; None if the call has ended and all replies were read."""
        try:
            return next(self._call)
        except grpc.RpcError as error:
            self._error = from_rpc(error, self._explain)  # type: ignore[arg-type]  # every RpcError of a call is a Call
        except StopIteration:
            pass
        return None

    def error(self) -> StreamCellError | None:
        """The error that the call ended with; None if it succeeded."""
        return self._error

    def cancel(self) -> None:
        """End the call."""
        self.write(None)
        self._call.cancel()
