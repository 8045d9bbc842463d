"""Small replicas on gRPC that share a store, which do what ours do too rarely, or should not do at all."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from streamcell.proto import pb, rpc
from tests.support.ports import free_port
from tests.support.small_store import Refused, Replica, SmallStore


class SmallServer(rpc.StreamCellServicer):
    """One replica's server.

    Attributes:
        puts: whether to put a session behind a message.
        moving: sessions that are told to move, once each; None: every one, again and again.
        metadata, peers: of each call.
        ends: how each stream has ended: "half-closed" or "broken".
        address: what it tells of itself.
    """

    def __init__(
        self,
        store: SmallStore,
        port: int = 0,
        level: str = "store-async",
        seed: int = 1,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        """`tls`: its certificate and key."""
        self.store, self.level, self.tls = store, level, tls
        self.chance = random.Random(seed)
        self.puts: Callable[[], bool] = lambda: self.chance.random() < 0.3
        self.moving: set[bytes] | None = set()
        self.peers: list[str] = []
        self.metadata: list[dict[str, str]] = []
        self.ends: list[str] = []
        self.address = ""
        self.name = "small"
        self.target = f"127.0.0.1:{port or free_port()}"
        self._lock = threading.Lock()
        self.start()

    def start(self) -> None:
        """Serve, again."""
        self._server = grpc.server(futures.ThreadPoolExecutor(40), options=[("grpc.so_reuseport", 0)])
        rpc.add_StreamCellServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        for _ in range(600):  # the port of one that was stopped a moment ago
            try:
                if self.tls is None:
                    self._server.add_insecure_port(self.target)
                else:
                    cert, key = (path.read_bytes() for path in self.tls)
                    self._server.add_secure_port(self.target, grpc.ssl_server_credentials([(key, cert)]))
                break
            except RuntimeError:
                time.sleep(0.05)
        self._server.start()

    def kill(self) -> None:
        """End at once; what is not in the store is lost."""
        self._server.stop(0).wait()

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return pb.ListModelsResponse()

    def CloseSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return pb.CloseSessionResponse(step_index=1)

    def StreamFrames(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        self._note(context)
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no frames here")

    def _note(self, context: Any) -> None:
        self.peers.append(context.peer())
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})

    def Stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802  # gRPC's name
        self._note(context)
        asked = next(requests).open
        if not asked.session:  # a usual session
            asked.session, asked.attempt, asked.window = secrets.token_bytes(16), 1, 32
        with self._lock:
            replica = Replica(self.store, random.Random(self.chance.random()), self.level, asked.window)
        replica.address, replica.name = self.address, self.name
        try:
            with self._lock:
                greeting = replica.open(asked)
        except Refused as refused:
            info = error_details_pb2.ErrorInfo(
                domain="streamcell", reason=refused.reason, metadata=refused.facts
            )
            status = status_pb2.Status(code=9, message=refused.reason)
            status.details.add().Pack(info)
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, refused.reason)
        yield from greeting
        try:
            yield from self._exchange(replica, requests, context)
        except grpc.RpcError:
            self.ends.append("broken")
        else:
            self.ends.append("half-closed" if context.is_active() else "broken")

    def _exchange(self, replica: Replica, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        done = moved = False
        for request in requests:
            if moved:  # nothing is taken any more
                continue
            done = request.HasField("received") and request.received == replica.read
            if self.moving is None or replica.session in self.moving:
                if self.moving is not None:
                    self.moving.remove(replica.session)
                replica.put()
                moved = True
                yield pb.StreamResponse(moved=pb.Moved())
                continue
            replica.take(request)
            while replica.busy:
                reply = pb.StreamResponse()
                with self._lock:
                    reply.CopyFrom(replica.run())
                    if (durable := replica.durable()) is not None and self.chance.random() < 0.5:
                        reply.durable = durable
                yield reply
            with self._lock:
                if self.puts():
                    replica.put()
                durable = replica.durable()
            if durable is not None:
                yield pb.StreamResponse(durable=durable)
        if done and not moved and context.is_active():
            self.store.images.pop(replica.session, None)


@pytest.fixture
def servers() -> Iterator[Callable[..., SmallServer]]:
    """Makes servers, all of one store."""
    store, made = SmallStore(), []

    def make(**options: Any) -> SmallServer:
        made.append(SmallServer(store, seed=len(made), **options))
        return made[-1]

    yield make
    for server in made:
        server.kill()
