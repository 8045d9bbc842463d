"""The blocking client: a connection to a server."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import grpc

from streamcell.client.channel import Metadata, Options
from streamcell.client.errors import ProtocolMisuse, from_rpc
from streamcell.client.protocol.health import CHECK
from streamcell.client.protocol.opening import OpenInputs
from streamcell.client.protocol.pool import PoolExchange
from streamcell.client.protocol.resume import Resumption, Ticket
from streamcell.client.protocol.session import SessionExchange
from streamcell.client.protocol.signature import OutputMode
from streamcell.proto import rpc

from .calls import Calls
from .grpc_stream import GrpcStream, SessionStream
from .pool import Pool
from .session import Session
from .shared_stream import SharedStreams
from .watchdog import Watchdog


class Client(Calls):
    """A connection to one server; `connect` makes it. Thread-safe: threads may share it, each with its sessions.

    gRPC connects when it is first used, reconnects by itself, and sends all sessions over one connection.
    """

    def __init__(self, target: str, options: Options) -> None:
        super().__init__()
        self._options = options
        credentials, arguments = options.credentials(), options.arguments()
        self._channel: Any = (
            grpc.insecure_channel(target, options=arguments)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=arguments)
        )
        self._stub: Any = rpc.StreamCellStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._health: Any = self._channel.unary_unary(CHECK)
        self._shared = SharedStreams(partial(self._stub.StreamFrames, **options.of_call(math.inf)))
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._closed = False
        self.target = target

    def session(
        self,
        model: str,
        version: str = "",
        *,
        output: OutputMode | None = None,
        inputs: OpenInputs = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        lazy: bool = False,
        metadata: Metadata = (),
        resume: bool = False,
        resume_s: float = 30.0,
        multiplex: bool | None = None,
    ) -> Session:
        """Open a session on `model`; on its newest version if none is named. Use it in a `with` statement.

        Args:
            output: the output steps of a message that its reply carries: "all" (the default), "last" or "none".
            inputs: what the session is given when it opens, by name: the model's `Model.open_inputs`, as arrays of
                their dtypes, or Python numbers (floats go as float32, ints as int64).
            timeout_s: time limit of the opening and of each reply; None: the client's.
            lifetime_s: gRPC deadline of the whole session.
            lazy: do not wait for the server's confirmation; the session's first use waits for it. Opens many quickly.
            metadata: sent with the call, after the client's metadata.
            resume: the session outlives its connection: if that is lost, the client goes on with another, and no output
                is lost or comes twice. After `cancel` the server still keeps it for a while: `Session.ticket`.
            resume_s: how long to try without an answer before that error is raised; the first opening, too.
            multiplex: carry it on one stream with other sessions of this client and model. None: as `connect` says, if
                two others are live and the model cannot generate. True: in any case; such a session cannot `generate`
                or `beam_search`. With `inputs`, `lifetime_s`, `metadata` or `resume` it always has a stream of its own.

        Raises:
            ModelNotFound, SessionLimit, ServerDraining, Unavailable, DeadlineExceeded, …
        """
        self._check_open()
        exchange = SessionExchange(model, version, output, inputs, Resumption(resume_s) if resume else None)
        wait_s = self._options.wait_s(timeout_s)
        own = self._start(self._stub.Stream, lifetime_s, metadata)
        shared = self._options.multiplex if multiplex is None else multiplex
        if not shared or inputs or metadata or resume or math.isfinite(lifetime_s):
            return Session(own, exchange, self._watchdog, wait_s, lazy)

        def start() -> SessionStream:
            return self._shared.open((model, version), exchange, bool(multiplex), wait_s) or own()

        return Session(start, exchange, self._watchdog, wait_s, lazy)

    def resume(
        self,
        ticket: Ticket,
        *,
        timeout_s: float | None = None,
        resume_s: float = 30.0,
        metadata: Metadata = (),
    ) -> Session:
        """Go on with a session of another process, or of this one, from what its `Session.ticket` says.

        Whoever has the session now loses it. Outputs that the ticket does not count come first: `receive` them while
        `Session.pending` is not 0, each with a leading axis. A generation that was running is stopped by the next call.

        Raises:
            SessionNotFound: the server no longer has it.
            RepliesGone: it no longer has outputs that the ticket does not count; the error says how to go on.
            StateBehind, SessionTakenOver, Unavailable, DeadlineExceeded, …
        """
        self._check_open()
        start = self._start(self._stub.Stream, math.inf, metadata)
        exchange = SessionExchange("", "", None, None, Resumption(resume_s, ticket))
        return Session(start, exchange, self._watchdog, self._options.wait_s(timeout_s), lazy=False)

    def pool(
        self,
        model: str,
        members: int,
        version: str = "",
        *,
        output: OutputMode | None = None,
        inputs: OpenInputs = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        lazy: bool = False,
        metadata: Metadata = (),
    ) -> Pool:
        """Open `members` sessions that one message steps together. Use it in a `with` statement.

        For gateways, simulators and fleets: thousands of sequences cost little more than one. Each of `inputs` is
        `[members, *shape]`. The other arguments and the errors are those of `session`.
        """
        self._check_open()
        start = self._start(self._stub.StreamFrames, lifetime_s, metadata)
        exchange = PoolExchange(model, version, members, output, inputs)
        return Pool(start, exchange, self._watchdog, self._options.wait_s(timeout_s), lazy)

    def _start(self, method: Any, lifetime_s: float, metadata: Metadata) -> Callable[[], SessionStream]:
        return lambda: GrpcStream(partial(method, **self._options.of_call(lifetime_s, metadata)))

    def close(self) -> None:
        """Disconnect. Sessions that are still open end as cancelled."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._watchdog.stop()
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ProtocolMisuse(f"the client of {self.target} is closed", reason="CLIENT_CLOSED")

    def _unary(self, method: Callable[..., Any], request: Any, timeout_s: float | None = None) -> Any:
        self._check_open()
        try:
            return method(request, **self._options.of_call(self._options.wait_s(timeout_s)))
        except grpc.RpcError as error:
            raise from_rpc(error) from None  # type: ignore[arg-type]  # every RpcError of a call is a Call
