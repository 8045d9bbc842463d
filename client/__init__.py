"""The Python client: numpy in, numpy out, blocking or on asyncio.

with connect("localhost:8500") as client, client.session("chorales") as session:
    y = session.step(x)  # x[*step_shape] → y[*step_shape]
"""

from .aio_client import AsyncClient
from .aio_pool import AsyncPool
from .aio_session import AsyncSession
from .channel import Options
from .client import Client
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
from .generation import Generated, Hypothesis, Step
from .generations import AsyncSteps, Steps
from .info import GenerationInfo, LiveSession, Model, State, Tensor
from .pool import Pool
from .session import Session
from .signature import OutputMode

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
