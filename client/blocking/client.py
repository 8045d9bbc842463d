"""The blocking client: a connection to a server."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import grpc

from streamcell.client.channel import Metadata, Options
from streamcell.client.errors import ProtocolMisuse, from_rpc
from streamcell.client.lines import Line, Lines
from streamcell.client.protocol.durability import Durability
from streamcell.client.protocol.frame_resume import FrameResumption
from streamcell.client.protocol.opening import OpenInputs
from streamcell.client.protocol.pool import PoolExchange
from streamcell.client.protocol.resume import RETAIN_BYTES, Resumption
from streamcell.client.protocol.retries import Retries
from streamcell.client.protocol.session import SessionExchange
from streamcell.client.protocol.signature import OutputMode
from streamcell.client.protocol.ticket import Ticket
from streamcell.client.protocol.way import Way
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

    Attributes:
        target: the server's address, with its port; several have commas between.
    """

    def __init__(self, target: str, options: Options) -> None:
        super().__init__()
        self._options = options
        self._lines = Lines(target, options, grpc, rpc.StreamCellStub)
        self.target = self._lines.target
        self._shared = SharedStreams(self._start_frames, self._lines.now().explain)
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._closed = False

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
        durability: Durability | None = None,
        retain_bytes: int = RETAIN_BYTES,
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
            durability: what a session with `resume` must survive: "none" (its connections), "process" (the server's
                processes), "store-async" or "store-sync" (its machine; `Session.durable`). None: what the server gives.
            retain_bytes: the most bytes of messages, with what they have come to, that a session at "store-async" keeps
                until the store has them. Beyond it, sending waits.
            multiplex: carry it on one stream with other sessions of this client and model. None: as `connect` says, if
                two others are live and the model cannot generate. True: in any case; such a session cannot `generate`
                or `beam_search`. With `inputs`, `lifetime_s`, `metadata` or `resume` it always has a stream of its own.

        Raises:
            ModelNotFound, SessionLimit, ServerDraining, Unavailable, DeadlineExceeded, …
        """
        self._check_open()
        resumption = Resumption(resume_s, retain_bytes=retain_bytes) if resume else None
        exchange = SessionExchange(model, version, output, inputs, resumption, durability=durability)
        exchange.others = self._lines.others()
        wait_s = self._options.wait_s(timeout_s)
        own = self._start("Stream", lifetime_s, metadata)
        shared = self._options.multiplex if multiplex is None else multiplex
        if not shared or inputs or metadata or resume or math.isfinite(lifetime_s):
            return Session(own, exchange, self._watchdog, wait_s, lazy)

        def start(way: Way | None) -> SessionStream:
            return self._shared.open((model, version), exchange, bool(multiplex), wait_s) or own(way)

        return Session(start, exchange, self._watchdog, wait_s, lazy)

    def resume(
        self,
        ticket: Ticket,
        *,
        timeout_s: float | None = None,
        resume_s: float = 30.0,
        retain_bytes: int = RETAIN_BYTES,
        metadata: Metadata = (),
    ) -> Session:
        """Go on with a session of another process, or of this one, from what its `Session.ticket` says.

        Whoever has the session now loses it. Outputs that the ticket does not count come first: `receive` them while
        `Session.pending` is not 0, each with a leading axis. A generation that was running is stopped by the next call.

        Raises:
            SessionNotFound: the server no longer has it.
            RepliesGone: it no longer has outputs that the ticket does not count; the error says how to go on.
            StateBehind: a shared store lacks messages that the ticket counts; a ticket holds none to send again.
            SessionTakenOver, Unavailable, DeadlineExceeded, …
        """
        self._check_open()
        start = self._start("Stream", math.inf, metadata)
        exchange = SessionExchange(
            "", "", None, None, Resumption(resume_s, ticket, retain_bytes=retain_bytes)
        )
        return Session(start, exchange, self._watchdog, self._options.wait_s(timeout_s), lazy=False)

    def restore(
        self,
        snapshot: bytes,
        model: str = "",
        version: str = "",
        *,
        output: OutputMode | None = None,
        timeout_s: float | None = None,
        resume_s: float = 30.0,
        durability: Durability | None = None,
        retain_bytes: int = RETAIN_BYTES,
        metadata: Metadata = (),
    ) -> Session:
        """Open a resumable session that begins in the state of `snapshot`, the bytes of a `Session.snapshot`.

        Args:
            model, version: must be the snapshot's if they are given.
            output, timeout_s, resume_s, durability, retain_bytes, metadata: as for `session`.

        Raises:
            SnapshotRefused: it is damaged, signed with another key, or of another model file.
            ModelNotFound, SessionLimit, ServerDraining, Unavailable, DeadlineExceeded, …
        """
        self._check_open()
        start = self._start("Stream", math.inf, metadata)
        resumption = Resumption(resume_s, retain_bytes=retain_bytes)
        exchange = SessionExchange(model, version, output, None, resumption, snapshot, durability)
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
        resume: bool = False,
        resume_s: float = 30.0,
    ) -> Pool:
        """Open `members` sessions that one message steps together. Use it in a `with` statement.

        For gateways, simulators and fleets: thousands of sequences cost little more than one. Each of `inputs` is
        `[members, *shape]`. With `resume` all members continue together if the connection breaks. The other arguments
        and the errors are those of `session`.
        """
        self._check_open()
        start = self._start("StreamFrames", lifetime_s, metadata)
        resumption = FrameResumption(resume_s) if resume else None
        exchange = PoolExchange(model, version, members, output, inputs, resumption=resumption)
        exchange.others = self._lines.others()
        return Pool(start, exchange, self._watchdog, self._options.wait_s(timeout_s), lazy)

    def restore_pool(
        self,
        snapshot: bytes,
        *,
        output: OutputMode | None = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        metadata: Metadata = (),
    ) -> Pool:
        """Open a pool with the members of `snapshot`, the bytes of a `Pool.snapshot`, with the same numbers.

        Raises:
            SnapshotRefused: it is damaged, signed with another key, or of another model file.
            ModelNotFound, SessionLimit, ServerDraining, …: as `pool`.
        """
        self._check_open()
        start = self._start("StreamFrames", lifetime_s, metadata)
        exchange = PoolExchange("", "", 0, output, snapshot=snapshot)
        exchange.others = self._lines.others()
        return Pool(start, exchange, self._watchdog, self._options.wait_s(timeout_s), lazy=False)

    def _start(
        self, method: str, lifetime_s: float, metadata: Metadata
    ) -> Callable[[Way | None], SessionStream]:
        used: list[Line] = []

        def start(way: Way | None) -> SessionStream:
            line = self._line(way, used)
            said = metadata if way is None else (*metadata, *way.metadata())
            call = partial(getattr(line.stub, method), **self._lines.of_call(lifetime_s, said))
            stream = GrpcStream(call, line.explain)
            line.streams.add(stream)
            for channel in self._lines.dropped():
                channel.close()
            return stream

        return start

    def _line(self, way: Way | None, used: list[Line]) -> Line:
        """The connection for a session's next stream; `used`: that of its last one, if it cannot be resumed."""
        if way is not None:
            return self._lines.of(way)
        if used:  # it was not opened there
            self._lines.skip(used.pop())
        used.append(self._lines.now())
        return used[0]

    def _start_frames(self, requests: Any) -> Any:
        line = self._lines.now()
        return line.stub.StreamFrames(requests, **self._lines.of_call(math.inf))

    def close(self) -> None:
        """Disconnect. Sessions that are still open end as cancelled."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._watchdog.stop()
        for channel in self._lines.every():
            channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ProtocolMisuse(f"the client of {self.target} is closed", reason="CLIENT_CLOSED")

    def _unary(
        self, method: str, request: Any, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Any:
        self._check_open()
        wait_s = self._options.wait_s(timeout_s)
        retries = Retries(wait_s, others=self._lines.others(method))
        while True:
            line = self._lines.now()
            try:
                return line.call(method)(request, **self._lines.of_call(wait_s, metadata))
            except grpc.RpcError as error:
                refused = from_rpc(error, line.explain)  # type: ignore[arg-type]  # every RpcError of a call is a Call
            if (pause_s := retries.pause_s(refused)) is None:
                raise refused
            if not pause_s:
                self._lines.skip(line)
            time.sleep(pause_s)
            wait_s = retries.left_s
