"""The Python client: numpy in, numpy out, blocking or on asyncio.

with connect("localhost:8500") as client, client.session("chorales") as session:
    y = session.step(x)  # x[*step_shape] → y[*step_shape]
"""

from streamcell.client.aio.client import AsyncClient
from streamcell.client.aio.pool import AsyncPool
from streamcell.client.aio.session import AsyncSession
from streamcell.client.blocking.client import Client
from streamcell.client.blocking.pool import Pool
from streamcell.client.blocking.session import Session
from streamcell.client.protocol.generation import Generated, Hypothesis, Step
from streamcell.client.protocol.signature import OutputMode
from streamcell.client.protocol.steps import AsyncSteps, Steps

from .channel import Options
from .entry import connect, connect_async
from .errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    LimitReached,
    MessageTooLarge,
    ModelNotFound,
    NotFound,
    ProtocolMisuse,
    RowsRefused,
    ServerDraining,
    ServerFault,
    SessionClosed,
    SessionEvicted,
    SessionExpired,
    SessionLimit,
    SessionLost,
    SessionNotFound,
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
    "RowsRefused",
    "ServerDraining",
    "ServerFault",
    "Session",
    "SessionClosed",
    "SessionEvicted",
    "SessionExpired",
    "SessionLimit",
    "SessionLost",
    "SessionNotFound",
    "State",
    "Step",
    "Steps",
    "StreamCellError",
    "Tensor",
    "Unavailable",
    "connect",
    "connect_async",
]
