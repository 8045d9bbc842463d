"""A session over a blocking gRPC stream."""

from __future__ import annotations

from typing import Any

from .conversation import Conversation
from .exchange import CHUNK, EITHER, STEP, SessionExchange
from .signature import OutputMode


class Session(Conversation[SessionExchange]):
    """One live sequence on one model; `Client.session` opens it. Its state stays on the server between steps.

    Inputs are numpy arrays of the model's dtype, or of one that numpy casts to it safely, or Python numbers in
    nested lists. A model with several inputs takes a dict by name or a tuple in order. Outputs are a numpy array,
    a dict of arrays by name where the model has several, or None in output mode "none".

    An input that does not fit raises InvalidInput before anything is sent and leaves the session as it was. Any
    error that the server sends ends the session: its state is gone and every later call raises that error again.

    One thread at a time, except for `cancel`. Leaving the `with` block waits for what was sent and closes; leaving
    it with an exception cancels.
    """

    def step(self, x: Any, *, output: OutputMode | None = None) -> Any:
        """Run one timestep: `x[*step_shape]` gives `y[*step_shape]`."""
        return self._ask(x, STEP, output)

    def run(self, x: Any, *, output: OutputMode | None = None) -> Any:
        """Run a chunk of timesteps: `x[T, *step_shape]` gives `y[T, *step_shape]`, or `y[1, …]` in mode "last"."""
        return self._ask(x, CHUNK, output)

    def send(self, x: Any, *, output: OutputMode | None = None) -> None:
        """Send one timestep `[*step_shape]` or a chunk `[T, *step_shape]` without waiting; `receive` its reply."""
        self._ensure_open()
        self._requests.put(self._exchange.request(x, EITHER, output))

    @property
    def step_index(self) -> int:
        """Timesteps applied since the session opened, as of the last reply received."""
        return self._exchange.step_index

    def _ask(self, x: Any, ranks: tuple[int, ...], output: OutputMode | None) -> Any:
        self._ensure_open()
        self._exchange.expect_idle()
        self._requests.put(self._exchange.request(x, ranks, output))
        return self._answer()
