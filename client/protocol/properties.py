"""The properties of sessions and pools in both clients."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from streamcell.client.values import Tensor

from .session import Exchange

ExchangeT = TypeVar("ExchangeT", bound=Exchange[Any])


class StreamProperties(Generic[ExchangeT]):
    """Properties of sessions and pools; a subclass sets `_exchange`."""

    _exchange: ExchangeT

    def _opened_exchange(self) -> ExchangeT:
        """The exchange. A client that opens lazily waits here for the server's first reply."""
        return self._exchange

    @property
    def alive(self) -> bool:
        """False once the session is known to have ended."""
        return self._exchange.error is None

    @property
    def pending(self) -> int:
        """The number of messages sent whose replies were not received yet."""
        return self._exchange.pending

    @property
    def id(self) -> str:
        """The session's id, as in the client's `sessions` and `close_session`."""
        return self._opened_exchange().opened.session_id

    @property
    def model(self) -> str:
        """The model's name."""
        return self._opened_exchange().opened.model

    @property
    def version(self) -> str:
        """The model's version, which a session never changes."""
        return self._opened_exchange().opened.version

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs of one step."""
        return self._opened_exchange().inputs()

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs of one step."""
        return self._opened_exchange().outputs()

    @property
    def max_steps(self) -> int:
        """Maximum timesteps in one message."""
        return self._opened_exchange().opened.max_steps_per_message

    @property
    def idle_timeout_s(self) -> float:
        """Seconds without a message after which the session expires; 0 for never."""
        return self._opened_exchange().opened.idle_timeout_s
