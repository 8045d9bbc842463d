"""A client's connections: one for each of its targets, and some to servers that others have named."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from .address import addresses
from .channel import Metadata, Options
from .errors import Explain
from .protocol.way import Way
from .route import Route

_MOST_DIRECT = 32
# They change one server, and nobody knows whether one that was cut off has been changed.
_OF_ONE_SERVER = {"CloseSession", "Drain", "DrainReplica", "RepositoryModelLoad", "RepositoryModelUnload"}
# A server that does not answer at all is given up after this time if there is another way.
_CONNECT = ("grpc.min_reconnect_backoff_ms", 2000)


@dataclass(eq=False)
class Line:
    """A connection to one address; gRPC connects when it is first used, and again if it breaks.

    Attributes:
        channel, stub: gRPC's.
        explain: says what helps if gRPC, a proxy or the network made an error.
        streams: those that use it.
    """

    channel: Any
    stub: Any
    explain: Explain
    streams: WeakSet[Any] = field(default_factory=WeakSet)

    def call(self, method: str) -> Any:
        """What calls a method: by its name, or by its path, if its messages are bytes."""
        return self.channel.unary_unary(method) if "/" in method else getattr(self.stub, method)


class Lines:
    """The connections of one client. Thread-safe.

    Attributes:
        target: the addresses, with their ports.
        targets: the same, one by one.
    """

    def __init__(self, target: str, options: Options, transport: Any, stub: Any) -> None:
        """Make the first one.

        Args:
            target: as for `connect`.
            options: of the client.
            transport: `grpc` or `grpc.aio`.
            stub: makes the stub of a channel.

        Raises:
            InvalidInput: WRONG_TARGET.
            OSError: the file of the roots cannot be read.
        """
        self.targets = addresses(target)
        self.target = ",".join(self.targets)
        self._options, self._transport, self._stub = options, transport, stub
        self._credentials = options.credentials()
        self._lock = threading.Lock()
        self._lines: dict[str, Line] = {}
        self._direct: OrderedDict[str, Line] = OrderedDict()
        self._dropped: list[Any] = []  # channels
        self._turn = 0
        self.now()

    def now(self) -> Line:
        """The connection for calls that any of the targets may answer."""
        with self._lock:
            return self._to_target(self._turn)

    def skip(self, line: Line) -> None:
        """Go on with the next target: this one cannot be reached."""
        with self._lock:
            if self._to_target(self._turn) is line:
                self._turn += 1

    def of(self, way: Way) -> Line:
        """The connection for a stream on this way."""
        with self._lock:
            way.set_out(self.targets, direct=self._options.direct)
            line = self._to_address(way.address) if way.address else None
            if line is None:
                way.refuse()
                line = self._to_target(way.turn)
            return line

    def others(self, method: str = "") -> int:
        """How many targets besides the first may answer a call, or open a session, if that one cannot be reached."""
        return 0 if method.rpartition("/")[2] in _OF_ONE_SERVER else len(self.targets) - 1

    def of_call(self, deadline_s: float, metadata: Metadata = ()) -> dict[str, Any]:
        """A gRPC call's keyword arguments: `Options.of_call`, but none waits for one of several servers."""
        arguments = self._options.of_call(deadline_s, metadata)
        return {**arguments, "wait_for_ready": self._options.wait_for_ready and len(self.targets) == 1}

    def dropped(self) -> list[Any]:
        """The channels to close, which nobody uses."""
        with self._lock:
            dropped, self._dropped = self._dropped, []
            return dropped

    def every(self) -> list[Any]:
        """All channels."""
        with self._lock:
            return [line.channel for line in (*self._lines.values(), *self._direct.values())] + self._dropped

    def _to_target(self, turn: int) -> Line:
        target = self.targets[turn % len(self.targets)]
        if (line := self._lines.get(target)) is None:
            line = self._lines[target] = self._line(target, last=len(self.targets) == 1)
        return line

    def _to_address(self, address: str) -> Line | None:
        """The connection to a server that another one has named; None if there is no room for one more."""
        line = self._direct.get(address)
        if line is None:
            if len(self._direct) >= _MOST_DIRECT:
                unused = next((name for name, each in self._direct.items() if not each.streams), None)
                if unused is None:
                    return None
                self._dropped.append(self._direct.pop(unused).channel)
            line = self._direct[address] = self._line(address, last=False)
        self._direct.move_to_end(address)
        return line

    def _line(self, target: str, *, last: bool) -> Line:
        """A new connection; `last`: there is no other way, so it has gRPC's usual patience."""
        arguments = self._options.arguments()
        if not last and _CONNECT[0] not in dict(arguments):
            arguments.append(_CONNECT)
        channel = (
            self._transport.insecure_channel(target, options=arguments)
            if self._credentials is None
            else self._transport.secure_channel(target, self._credentials, options=arguments)
        )
        return Line(channel, self._stub(channel), Route.to(target, arguments).explain)
