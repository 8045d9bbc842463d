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
from streamcell.client.protocol.generation import Generated, Hypothesis, Step
from streamcell.client.protocol.resume import Ticket
from streamcell.client.protocol.signature import OutputMode
from streamcell.client.protocol.steps import AsyncSteps, Steps

from .channel import TLS, Metadata, Options
from .errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    LimitReached,
    MessageTooLarge,
    ModelNotFound,
    NotFound,
    ProtocolMisuse,
    RepliesGone,
    RowsRefused,
    ServerDraining,
    ServerFault,
    SessionClosed,
    SessionExpired,
    SessionLimit,
    SessionLost,
    SessionNotFound,
    SessionTakenOver,
    StateBehind,
    StreamCellError,
    Unavailable,
)
from .values import GenerationInfo, LiveSession, Model, State, Tensor

__all__ = [
    "AsyncClient",
    "AsyncPool",
    "AsyncSession",
    "AsyncSteps",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Generated",
    "GenerationInfo",
    "Hypothesis",
    "InvalidInput",
    "LimitReached",
    "LiveSession",
    "MessageTooLarge",
    "Model",
    "ModelNotFound",
    "NotFound",
    "Options",
    "OutputMode",
    "Pool",
    "ProtocolMisuse",
    "RepliesGone",
    "RowsRefused",
    "ServerDraining",
    "ServerFault",
    "Session",
    "SessionClosed",
    "SessionExpired",
    "SessionLimit",
    "SessionLost",
    "SessionNotFound",
    "SessionTakenOver",
    "State",
    "StateBehind",
    "Step",
    "Steps",
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
    options: list[tuple[str, object]]


def connect(target: str, **options: Unpack[ConnectOptions]) -> Client:
    """Make a blocking client of the server at `target`, such as "localhost:8500"; `Options` lists the other arguments.

    Nothing is sent yet. Use it in a `with` statement, or `close` it.
    """
    return Client(target, Options(**options))


def connect_async(target: str, **options: Unpack[ConnectOptions]) -> AsyncClient:
    """Make an asyncio client, for `async with`. Call it while the event loop runs.

    gRPC supports one event loop per process.
    """
    return AsyncClient(target, Options(**options))
