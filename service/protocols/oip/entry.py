"""One request that waits for its answer, however it came."""

from __future__ import annotations

from typing import Protocol

from streamcell.service.errors import ServiceError
from streamcell.service.protocols.common.unary_rows import UnaryCaller

from .requests import Key, ParsedRequest


class PendingRequest(Protocol):
    """One request that waits for its answer: a message of a stream, or a unary call."""

    plan: ParsedRequest

    @property
    def gone(self) -> bool:
        """Whether the client that it came from has gone, as far as one can know."""

    def answer(self, tensors: list[bytes]) -> None:
        """Its outputs, in the signature's order, and behind them the states where it asked for one."""

    def fail(self, error: ServiceError, key: Key | None) -> None:
        """It was refused. `key`: its sequence's."""

    def resume(self) -> None:
        """Where it came from may be read on."""


class IncomingRequest(PendingRequest, UnaryCaller, Protocol):
    """A request whose bytes are being read."""

    id: bytes

    @property
    def peer(self) -> str:
        """The client's address."""
