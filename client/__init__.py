"""The Python client: numpy in, numpy out, blocking or on asyncio.

with connect("localhost:8500") as client, client.session("chorales") as session:
    y = session.step(x)  # x[*step_shape] → y[*step_shape]
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from streamcell.client.aio.client import AsyncClient
from streamcell.client.aio.pool import AsyncPool
from streamcell.client.aio.session import AsyncSession
from streamcell.client.blocking.client import Client
from streamcell.client.blocking.pool import Pool
from streamcell.client.blocking.session import Session
from streamcell.client.protocol.durability import Durability
from streamcell.client.protocol.generation import Generated, Hypothesis, Step
from streamcell.client.protocol.signature import OutputMode
from streamcell.client.protocol.steps import AsyncSteps, Steps
from streamcell.client.protocol.ticket import Ticket

from .channel import TLS, Metadata, Options
from .errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    LimitReached,
    MessageTooLarge,
    ModelNotFound,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    ProtocolMisuse,
    RepliesGone,
    RowsRefused,
    ServerDraining,
    ServerFault,
    SessionClosed,
    SessionExpired,
    SessionLimit,
    SessionLost,
    SessionMoved,
    SessionNotFound,
    SessionTakenOver,
    SnapshotRefused,
    StateBehind,
    StoreUnavailable,
    StreamCellError,
    Unavailable,
)
from .values import Available, GenerationInfo, LiveSession, Model, Replica, State, Tensor

__all__ = [
    "AsyncClient",
    "AsyncPool",
    "AsyncSession",
    "AsyncSteps",
    "Available",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Durability",
    "Generated",
    "GenerationInfo",
    "Hypothesis",
    "InvalidInput",
    "LimitReached",
    "LiveSession",
    "MessageTooLarge",
    "Model",
    "ModelNotFound",
    "NotAuthenticated",
    "NotFound",
    "NotPermitted",
    "Options",
    "OutputMode",
    "Pool",
    "ProtocolMisuse",
    "Replica",
    "RepliesGone",
    "RowsRefused",
    "ServerDraining",
    "ServerFault",
    "Session",
    "SessionClosed",
    "SessionExpired",
    "SessionLimit",
    "SessionLost",
    "SessionMoved",
    "SessionNotFound",
    "SessionTakenOver",
    "SnapshotRefused",
    "State",
    "StateBehind",
    "Step",
    "Steps",
    "StoreUnavailable",
    "StreamCellError",
    "Tensor",
    "Ticket",
    "Unavailable",
    "connect",
    "connect_async",
]


class ConnectOptions(TypedDict, total=False):
    """The keyword arguments of `connect`: the fields of `Options`."""

    timeout_s: float
    tls: TLS
    metadata: Metadata
    keepalive_s: float
    keepalive_timeout_s: float
    multiplex: bool
    wait_for_ready: bool
    direct: bool
    options: list[tuple[str, object]]


def connect(target: str, **options: Unpack[ConnectOptions]) -> Client:
    """Make a blocking client of the server at `target`; `Options` lists the other arguments.

    `target` is HOST or HOST:PORT, such as "localhost", "10.0.0.7:8500" or "[::1]:8500"; the port is 8500 if there is
    none. Several servers have commas between, "a:8500,b:8500": sessions with `resume` are spread over them and, if they
    are in a shared store, go on at another one if theirs is lost. Other calls go to the first one that can be reached;
    what changes a server, such as `drain`, needs a client of that server alone. Nothing is sent yet. Use it in a `with`
    statement, or `close` it.

    Raises:
        InvalidInput: WRONG_TARGET.
    """
    return Client(target, Options(**options))


def connect_async(target: str, **options: Unpack[ConnectOptions]) -> AsyncClient:
    """Make an asyncio client, for `async with`. Call it while the event loop runs.

    gRPC supports one event loop per process.
    """
    return AsyncClient(target, Options(**options))
