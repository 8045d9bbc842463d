"""The properties of sessions and pools in both clients."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from streamcell.client.errors import DeadlineExceeded
from streamcell.client.values import Tensor

from .retries import Retries
from .session import Exchange

ExchangeT = TypeVar("ExchangeT", bound=Exchange[Any])


class StreamProperties(Generic[ExchangeT]):
    """Properties of sessions and pools; a subclass sets `_exchange`."""

    _exchange: ExchangeT

    def _opened_exchange(self) -> ExchangeT:
        """The exchange. A client that opens lazily waits here for the server's first reply."""
        return self._exchange

    def _retries(self, timeout_s: float) -> Retries:
        """The tries of the opening. One that can be resumed finds its way to other servers by itself."""
        return Retries(timeout_s, others=0 if self._exchange.resumption else self._exchange.others)

    def _late(self, timeout_s: float) -> DeadlineExceeded:
        """The error of a wait that took too long."""
        resumption = self._exchange.resumption
        if resumption is not None and resumption.waits_for_store:
            return DeadlineExceeded(
                f"the shared store has taken nothing for {timeout_s:g} s, and the session may keep no more messages "
                "until then: it is over here, and its ticket stays good"
            )
        return DeadlineExceeded(f"no answer within {timeout_s:g} s: the session is over")

    @property
    def alive(self) -> bool:
        """False once the session is known to have ended."""
        return self._exchange.error is None

    @property
    def pending(self) -> int:
        """The number of messages sent whose replies were not received yet."""
        return self._exchange.pending

    @property
    def resumes(self) -> int:
        """How often the session was resumed, so far."""
        return 0 if self._exchange.resumption is None else self._exchange.resumption.resumes

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
