"""What sessions and calls use of a model, whichever process runs it."""

from __future__ import annotations

from typing import Any, Protocol

from streamcell.card import Generation, ModelCard, Signature
from streamcell.service.errors import ServiceError

from .capacity import Capacity
from .session import SessionListener


class ModelInfo(Protocol):
    """What a model's file says."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def signature(self) -> Signature: ...
    @property
    def generation(self) -> Generation | None: ...
    @property
    def card(self) -> ModelCard | None: ...


class Queue(Protocol):
    """Opens a model's sessions and queues their messages: a `Batcher`, or in a front end a `RemoteBatcher`.

    Sessions and work are of the queue's own kinds.
    """

    @property
    def capacity(self) -> Capacity: ...
    @property
    def live(self) -> int: ...
    def open(self, session_id: str, listener: SessionListener, peer: str = "") -> Any: ...
    def submit(self, session: Any, work: Any, after_arrivals: Any = None) -> bool: ...
    def release(self, session: Any, hold: int | None = None) -> None: ...
    def end(self, session: Any) -> bool: ...


class SessionCounter(Protocol):
    """Counts a model's sessions and failed requests."""

    def session_opened(self, count: int = 1) -> None: ...
    def session_ended(self, reason: str, count: int = 1) -> None: ...
    def request_failed(self, error: ServiceError, requests: int = 1, total_s: float = 0.0) -> None: ...


class Model(Protocol):
    """A model that takes sessions: a `LoadedModel`, or in a front end a `RemoteModel`."""

    @property
    def file(self) -> ModelInfo: ...
    @property
    def batcher(self) -> Queue: ...
    @property
    def metrics(self) -> SessionCounter: ...
    @property
    def max_sessions(self) -> int: ...
    @property
    def max_batch(self) -> int: ...
    @property
    def max_chunk(self) -> int: ...
