"""What a conversation tells of itself, blocking or not."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from streamcell.client.values import Tensor

from .session import Exchange

Exchanging = TypeVar("Exchanging", bound=Exchange[Any])


class Described(Generic[Exchanging]):
    """The properties that sessions and pools of both clients have; a client's class sets `_exchange`."""

    _exchange: Exchanging

    def _opened_exchange(self) -> Exchanging:
        """The exchange; a client that opens late waits here for the server's first reply."""
        return self._exchange

    @property
    def alive(self) -> bool:
        """Whether the session is not known to be over."""
        return self._exchange.error is None

    @property
    def pending(self) -> int:
        """Messages sent and not received yet."""
        return self._exchange.pending

    @property
    def id(self) -> str:
        """The name of the session in the client's `sessions` and `close_session`."""
        return self._opened_exchange().opened.session_id

    @property
    def model(self) -> str:
        """The model's name."""
        return self._opened_exchange().opened.model

    @property
    def version(self) -> str:
        """The version that the session stays on."""
        return self._opened_exchange().opened.version

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What one step takes."""
        return self._opened_exchange().inputs()

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What one step gives."""
        return self._opened_exchange().outputs()

    @property
    def max_steps(self) -> int:
        """The most timesteps that one message may carry."""
        return self._opened_exchange().opened.max_steps_per_message

    @property
    def idle_timeout_s(self) -> float:
        """Seconds without a message after which the session expires; 0 for never."""
        return self._opened_exchange().opened.idle_timeout_s
