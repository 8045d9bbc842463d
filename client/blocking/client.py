"""The blocking client: a connection to a server, and the calls that are not a session's."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import grpc

from streamcell.client import values as info
from streamcell.client.channel import Metadata, Options
from streamcell.client.errors import InvalidInput, ProtocolMisuse, from_rpc
from streamcell.client.protocol import predict as predictions
from streamcell.client.protocol.health import CHECK, ask, is_serving
from streamcell.client.protocol.pool import PoolExchange
from streamcell.client.protocol.session import SessionExchange
from streamcell.client.protocol.signature import OutputMode, SignatureCodec
from streamcell.proto import pb, rpc

from .pool import Pool
from .session import Session
from .stream_base import Requests
from .watchdog import Watchdog

_Reply = TypeVar("_Reply")


class Client:
    """A connection to one server; `connect` makes it. Thread-safe: threads may share it, each with its sessions.

    gRPC connects when it is first used, reconnects by itself, and sends all sessions over one connection.
    """

    def __init__(self, target: str, options: Options) -> None:
        self._options = options
        credentials, arguments = options.credentials(), options.arguments()
        self._channel: Any = (
            grpc.insecure_channel(target, options=arguments)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=arguments)
        )
        self._stub: Any = rpc.StreamCellStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._health: Any = self._channel.unary_unary(CHECK)
        self._watchdog = Watchdog()
        self._codecs: dict[tuple[str, str], SignatureCodec] = {}
        self._lock = threading.Lock()
        self._closed = False
        self.target = target

    def session(
        self,
        model: str,
        version: str = "",
        *,
        output: OutputMode | None = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        lazy: bool = False,
        metadata: Metadata = (),
    ) -> Session:
        """Open a session on `model`, on its newest version unless one is named. Use it in a `with` statement.

        Args:
            output: which of a message's output steps replies carry: "all" (the default), "last" or "none".
            timeout_s: the longest that the opening and any one reply may take; the client's where it is None.
            lifetime_s: a gRPC deadline for the session as a whole.
            lazy: do not wait for the server's confirmation; the session's first use does. Opens many quickly.
            metadata: sent with the call, after the client's.

        Raises:
            ModelNotFound, SessionLimit, ServerDraining, Unavailable, DeadlineExceeded, …
        """
        self._check_open()

        start = self._start(self._stub.Stream, lifetime_s, metadata)
        exchange = SessionExchange(model, version, output)
        return Session(start, exchange, self._watchdog, self._limit_s(timeout_s), lazy)

    def pool(
        self,
        model: str,
        members: int,
        version: str = "",
        *,
        output: OutputMode | None = None,
        timeout_s: float | None = None,
        lifetime_s: float = math.inf,
        lazy: bool = False,
        metadata: Metadata = (),
    ) -> Pool:
        """Open `members` sessions that are stepped together: a message for all of them. Use it in a `with` statement.

        For gateways, simulators and fleets: thousands of sequences cost little more than one. The arguments are
        otherwise those of `session`, and so is what is raised.
        """
        self._check_open()
        start = self._start(self._stub.StreamFrames, lifetime_s, metadata)
        exchange = PoolExchange(model, version, members, output)
        return Pool(start, exchange, self._watchdog, self._limit_s(timeout_s), lazy)

    def _start(self, method: Any, lifetime_s: float, metadata: Metadata) -> Callable[[Requests], Any]:
        def start(requests: Requests) -> Any:
            return method(
                requests,
                timeout=lifetime_s if math.isfinite(lifetime_s) else None,
                metadata=(*self._options.metadata, *metadata),
                wait_for_ready=self._options.wait_for_ready,
            )

        return start

    def _limit_s(self, timeout_s: float | None) -> float:
        limit_s = self._options.limit_s(timeout_s)
        return math.inf if limit_s is None else limit_s

    def predict(
        self,
        model: str,
        x: Any,
        *,
        version: str = "",
        output: OutputMode | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Run whole sequences from the initial state; nothing is kept.

        `x[T, *step_shape]` is one sequence and gives `y[T, *step_shape]`; `x[B, T, *step_shape]` is a batch of B
        independent ones and gives `y[B, T, *step_shape]`. In mode "last" T is 1 in the output. For a stateless
        model every timestep is a row of its own, so `x[N, *step_shape]` is simply N rows. Inputs and outputs are
        otherwise as for a session.
        """
        key = (model, version)
        codec = known = self._codecs.get(key)
        try:
            if codec is None:
                codec = self._signature(key, timeout_s)
            try:
                request, batched = predictions.request(codec, model, version, x, output)
            except InvalidInput:
                if known is None:
                    raise
                codec = self._signature(key, timeout_s)  # the model may have changed
                request, batched = predictions.request(codec, model, version, x, output)
            reply = self._unary(self._stub.Predict, request, timeout_s)
            outputs = predictions.outputs(codec, reply, batched)
        except Exception:
            self._codecs.pop(key, None)  # as above: look again next time
            raise
        self._codecs[key] = codec
        return outputs

    def _signature(self, key: tuple[str, str], timeout_s: float | None) -> SignatureCodec:
        found = (self._unary(self._stub.GetModel, predictions.get_model(*key), timeout_s)).model
        return SignatureCodec(found.inputs, found.outputs)

    def models(self) -> list[info.Model]:
        """Every model that can be opened."""
        return [
            info.model(each) for each in self._unary(self._stub.ListModels, pb.ListModelsRequest()).models
        ]

    def model(self, name: str, version: str = "") -> info.Model:
        """One model, its newest version unless one is named. Raises ModelNotFound."""
        return info.model(self._unary(self._stub.GetModel, predictions.get_model(name, version)).model)

    def sessions(self, model: str = "") -> Iterator[info.LiveSession]:
        """The live sessions of all clients, oldest first; only those on `model` where it is given."""
        token = ""
        while True:
            request = pb.ListSessionsRequest(model=model, page_token=token)
            page = self._unary(self._stub.ListSessions, request)
            yield from map(info.live_session, page.sessions)
            token = page.next_page_token
            if not token:
                return

    def close_session(self, session_id: str) -> int:
        """End any client's session and return the timesteps it had applied. Raises SessionNotFound."""
        reply = self._unary(self._stub.CloseSession, pb.CloseSessionRequest(session_id=session_id))
        index: int = reply.step_index
        return index

    def ready(self, model: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the server, or one of its models, takes sessions: the standard gRPC health check.

        Raises:
            NotFound: the server knows no such model.
            Unavailable, DeadlineExceeded: it cannot be asked.
        """
        return is_serving(self._unary(self._health, ask(model), timeout_s))

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

    def _unary(self, method: Callable[..., _Reply], request: Any, timeout_s: float | None = None) -> _Reply:
        self._check_open()
        try:
            return method(
                request,
                timeout=self._options.limit_s(timeout_s),
                metadata=tuple(self._options.metadata),
                wait_for_ready=self._options.wait_for_ready,
            )
        except grpc.RpcError as error:
            raise from_rpc(error) from None  # type: ignore[arg-type]  # every RpcError of a call is a Call
