"""A request that waits for its answer, from any kind of call."""

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
        """True if its client is known to have gone."""

    def answer(self, tensors: list[bytes]) -> None:
        """Answer with the outputs in the signature's order, followed by the states if it asked for any."""

    def fail(self, error: ServiceError, key: Key | None) -> None:
        """Refuse it. `key`: its sequence's."""

    def resume(self) -> None:
        """Resume reading the call that it came from."""


class IncomingRequest(PendingRequest, UnaryCaller, Protocol):
    """A request whose bytes are being read."""

    id: bytes

    @property
    def peer(self) -> str:
        """The client's address."""

    @property
    def subject(self) -> str:
        """Who calls; empty if nobody was asked."""
